"""Pointwise hints: hint, VID, PAD, SRD, AB, OFD."""

import math

import cases
import naive_hints as naive
import parity
import pytest
import torch
from suite import *  # noqa: F403 - the tests that every loss passes
from suite import Loss, gradients
from torch import nn

from abckd_kernels.losses import hints as h
from abckd_kernels.losses.common.features import Padding
from abckd_kernels.losses.hints import _connector as connector
from abckd_kernels.losses.hints._connector import Connector
from abckd_kernels.losses.hints._matching import sums

OTHER = (3, 9, 4)  # another size
WIDE = (4, 6, 5)  # other channels
MODULE = "with learned parts: its own row"


def per_layer(name, make):
    """Argument `name` of a loss: make(student) for a feature, a list of these for a list."""

    def extra(student, teacher):
        return {name: make(student) if isinstance(student, torch.Tensor) else [make(x) for x in student]}

    return extra


def between(first, last):
    """A number for each channel."""
    return lambda x: torch.linspace(first, last, x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))


log_variances = per_layer("log_variances", lambda x: x.flip(-1) * 0.5)
with_scales = per_layer("scales", between(-1, 2))
with_margins = per_layer("margins", between(-0.1, -0.9))

signed = {"nonnegative": False, "zero_at_equality": False}
apart = {"zero_at_equality": False}  # where the margin is not reached
plain = {"teacher": (3, 6, 5), "invariant": "batch"}
sized = {"teacher": OTHER, "invariant": "batch"}
learned = {"teacher": WIDE, "invariant": "batch", "of_batch": True, **signed}
no_module = {"excused": {"test_module_is_the_function": MODULE}}
LOSSES = [
    Loss("hint", h.hint_loss, naive.hint, vectors=True, **plain),
    Loss("hint", h.hint_loss, naive.hint, **sized),
    Loss("vid", h.vid_loss, naive.vid, extra=with_scales, **plain, **signed, **no_module),
    Loss("vid", h.vid_loss, naive.vid, extra=with_scales, options={"eps": 0.1}, **sized, **signed, **no_module),
    Loss("vid", None, naive.vid_module, module=lambda: h.VIDLoss(3, 4), teacher=WIDE, invariant="batch", **signed),
    Loss("pad", h.pad_loss, naive.pad, extra=log_variances, **plain, **signed, **no_module),
    Loss("pad", h.pad_loss, naive.pad, extra=log_variances, options={"eps": 0.1}, **sized, **signed, **no_module),
    Loss("pad", None, naive.pad_module, module=lambda: h.PADLoss(3, 4), **learned),
    Loss("pad", None, naive.pad_module, module=lambda: h.PADLoss(3, 3), **learned | {"teacher": (3, 6, 5)}),
    Loss("srd", h.srd_loss, naive.srd, vectors=True, **plain, **no_module),
    Loss("srd", h.srd_loss, naive.srd, options={"power": 1.5}, **sized, **no_module),
    Loss("srd", h.srd_loss, naive.srd, options={"convention": "published"}, of_batch=True, **plain, **signed,
         **no_module),
    Loss("srd", None, naive.srd_module, module=lambda: h.SRDLoss(3, 4), **learned),
    Loss("cwd", h.cwd_loss, naive.cwd, **plain),
    Loss("cwd", h.cwd_loss, naive.cwd, options={"temperature": 4.0}, **sized),
    Loss("pkd", h.pkd_loss, naive.pkd, teacher=(3, 6, 5), invariant="scale batch", of_batch=True),
    Loss("pkd", h.pkd_loss, naive.pkd, teacher=OTHER, invariant="scale batch", of_batch=True,
         options={"convention": "published"}),
    Loss("ab", h.ab_loss, naive.ab, **plain, **apart),
    Loss("ab", h.ab_loss, naive.ab, options={"margin": 0.3, "reduction": "batchmean"}, **sized, **apart),
    Loss("ab", None, naive.ab_module, module=lambda: h.ABLoss(3, 4), **learned),
    Loss("ofd", h.ofd_loss, naive.ofd, extra=with_margins, **plain, **no_module),
    Loss("ofd", h.ofd_loss, naive.ofd, extra=with_margins, options={"reduction": "batchmean"}, **sized, **no_module),
    Loss("ofd", None, naive.ofd_module, module=lambda: h.OFDLoss(3, 4), **learned),
]  # fmt: skip


# ---------------------------------------------------------------------------------------------- published numbers


def with_parameters(module, names, peer):
    """The module as a function of published parameters, and these; names: {published: own}."""
    parameters = {name: peer[f"p.{name}"].clone().requires_grad_() for name in names}
    state = {own: parameters[name] for name, own in names.items()}
    state = {own: value.flatten(1) if value.dim() == 4 else value for own, value in state.items()}
    return lambda *features: torch.func.functional_call(module.double(), state, features), parameters


def published_vid(peer, scale):
    names = {
        f"regressor.{2 * i}.weight": f"layers.0.{name}.weight" for i, name in enumerate(("first", "second", "third"))
    }
    form, parameters = with_parameters(h.VIDLoss(6, 10), names | {scale: "layers.0.scale"}, peer)
    return form(peer.students, peer.teachers), parameters


def published_ab(peer):
    own = {"conv.weight": "linear.weight", "bn.weight": "norm.weight", "bn.bias": "norm.bias"}
    names = {f"connectors.{i}.{k}": f"connected.layers.{i}.{v}" for i in range(3) for k, v in own.items()}
    weights = [2.0 ** (i - 2) * 3 / 1000 for i in range(3)]
    module = h.ABLoss([4, 6, 8], [10, 12, 14], reduction="batchmean", weights=weights)
    form, parameters = with_parameters(module, names, peer)
    return form(peer.students, peer.teachers), parameters


def published_ofd(peer):
    own = {"0.weight": "linear.weight", "1.weight": "norm.weight", "1.bias": "norm.bias"}
    names = {f"connectors.connectors.{i}.{k}": f"layers.{i}.{v}" for i in range(3) for k, v in own.items()}
    margins = [peer[f"x.margin{i}"].flatten() for i in range(3)]
    weights = [2.0 ** -(3 - i - 1) for i in range(3)]
    module = h.OFDLoss([4, 6, 8], [10, 12, 14], margins, reduction="batchmean", weights=weights)
    form, parameters = with_parameters(module, names, peer)
    return form(peer.students, peer.teachers), parameters


def published_pad(peer):
    s, log_variances = peer.students
    return h.pad_loss(s.flatten(1), peer.teachers[0].flatten(1), log_variances), {}


def published_srd(peer):
    (s_logits, s), (t_logits, t) = peer.students, peer.teachers
    divergence = nn.functional.kl_div(
        s_logits.log_softmax(1), t_logits.log_softmax(1), log_target=True, reduction="batchmean"
    )
    return h.srd_loss(s, t, convention="published", weights=[2.0]) + divergence, {}


PUBLISHED = {
    "rep__FitNet_mse_only": (h.hint_loss, {}),
    "md__VID_eq": lambda peer: published_vid(peer, "log_scale"),
    "rep__VID_s_larger_t_square": lambda peer: published_vid(peer, "log_scale"),
    "td__VID_eq": lambda peer: published_vid(peer, "soft_plus_param"),
    "td__PAD_L2": published_pad,
    "td__SRD": published_srd,
    "td__AltAct_mean": (h.ab_loss, {"reduction": "batchmean"}),
    "rep__AB_connector_3layers": published_ab,
    "md__OFD_eq_3layers": published_ofd,
}


class TestPublished:
    def test_bias_before_a_normalisation_does_nothing(self):
        """Published AB connectors have one; its gradient is rounding noise, so ours have none."""
        peer = parity.Vectors("rep__AB_connector_3layers")
        for i in range(3):
            assert peer[f"gp.connectors.{i}.conv.bias"].abs().max() < 1e-14

    def test_margins_are_the_published_ones(self):
        peer = parity.Vectors("md__OFD_eq_3layers")
        for i, channels in enumerate((10, 12, 14)):
            norm = nn.BatchNorm2d(channels)
            norm.weight.data, norm.bias.data = peer[f"x.bn{i}_weight"], peer[f"x.bn{i}_bias"]
            torch.testing.assert_close(h.margins(norm), peer[f"x.margin{i}"].flatten(), rtol=2e-6, atol=2e-6)

    def test_vid_of_mdistiller_never_trains_its_variances(self):
        """Published: `log_scale` is in no list of parameters. Ours is one."""
        assert any(name.endswith("scale") for name, _ in h.VIDLoss(3, 4).named_parameters())


# ---------------------------------------------------------------------------------------------- learned parts


def published_connector(x, module):
    """What a connector folds, layer by layer."""
    y = nn.functional.conv1d(x.flatten(2), module.linear.weight[:, :, None])
    affine = module.norm.weight, module.norm.bias
    module.norm.num_batches_tracked += module.training
    return nn.functional.batch_norm(y, module.norm.running_mean, module.norm.running_var, *affine, module.training)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("layout", [cases.contiguous, cases.channels_last], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_connector_is_convolution_and_batch_norm(training, layout, mean):
    torch.manual_seed(0)
    ours, theirs = Connector(5, 7).train(training), Connector(5, 7).train(training)
    theirs.load_state_dict(ours.state_dict())
    x = (torch.randn(3, 5, 6, 4) + mean).requires_grad_()
    upstream, padding = torch.randn(3, 7, 6, 4), Padding(None, 6)
    y = ours(layout(x), padding)
    expected = published_connector(x.double(), theirs.double()).view(y.shape)
    digits = {"rtol": 1e-4, "atol": 1e-4 * max(mean, 1)}
    torch.testing.assert_close(y.double(), expected, **digits)
    for module, value in ((ours, y), (theirs, expected)):
        module.grads = torch.autograd.grad((value * upstream).sum(), [x, *module.parameters()])
    for mine, other in zip(ours.grads, theirs.grads, strict=True):
        torch.testing.assert_close(mine.double(), other.double(), **digits)
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer.double(), dict(theirs.named_buffers())[name].double(), **digits)


@pytest.mark.parametrize("lengths", [None, [6, 1, 0]], ids=["whole", "padded"])
@pytest.mark.parametrize("layout", [cases.contiguous, cases.channels_last], ids=lambda layout: layout.__name__)
def test_a_few_samples_at_a_time_are_the_whole_batch(layout, lengths, monkeypatch):
    torch.manual_seed(0)
    x, t = layout(torch.randn(3, 5, 6, 4)).requires_grad_(), layout(torch.randn(3, 7, 6, 4))
    weight, bias = torch.randn(7, 5, requires_grad=True), torch.randn(7, requires_grad=True)
    padding = Padding(None if lengths is None else torch.tensor(lengths), 6)
    whole = sums(connector.at_every_position(x, weight, bias), t, padding, kind="boundary")
    monkeypatch.setattr(connector, "CHUNK_BYTES", 1)
    parts = connector.projected_sums(x, t, weight, bias, padding, kind="boundary")
    torch.testing.assert_close(parts, whole)
    upstream = torch.randn(3, 7)
    gradients = [torch.autograd.grad(value, (x, weight, bias), upstream) for value in (parts, whole)]
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected)


def test_second_derivatives_of_projected_sums_are_refused():
    x, t = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 3, 4)
    module = h.OFDLoss(3, 3)
    (first,) = torch.autograd.grad(module(x, t), x, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.square().sum(), x)


@pytest.mark.parametrize("make", [h.VIDLoss, h.PADLoss, h.SRDLoss, h.ABLoss, h.OFDLoss], ids=lambda make: make.__name__)
def test_a_module_takes_several_layers(make):
    torch.manual_seed(0)
    module = make([3, 2], [4, 5], weights=[2.0, 0.5])
    students = [torch.randn(2, 3, 6, 5), torch.randn(2, 2, 8)]
    teachers = [torch.randn(2, 4, 6, 5), torch.randn(2, 5, 8)]
    one = [copy_of_layer(module, make, index, pair) for index, pair in enumerate(((3, 4), (2, 5)))]
    alone = [form(s, t) for form, s, t in zip(one, students, teachers, strict=True)]
    torch.testing.assert_close(module(students, teachers), 2 * alone[0] + 0.5 * alone[1])


def copy_of_layer(module, make, index, channels):
    one = make(*channels)
    source, target = (getattr(x, "connected", x) for x in (module, one))
    target.layers[0].load_state_dict(source.layers[index].state_dict())
    return one


@pytest.mark.parametrize("make", [h.PADLoss, h.SRDLoss, h.ABLoss, h.OFDLoss], ids=lambda make: make.__name__)
def test_evaluation_does_not_depend_on_the_rest_of_the_batch(make):
    torch.manual_seed(0)
    module = make(3, 4)
    student, teacher = torch.randn(5, 3, 6, 4), torch.randn(5, 4, 6, 4)
    module(student, teacher, lengths=[6, 3, 1, 2, 0])
    module.eval()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    alone = torch.stack([module(student[b : b + 1], teacher[b : b + 1]) for b in range(5)])
    torch.testing.assert_close(module(student, teacher), alone.mean())
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("weight, bias", [(1.0, 0.0), (0.5, 0.3), (-0.5, 0.3), (0.2, 5.0), (0.0, 0.4), (0.0, -0.4)])
def test_margin_is_the_mean_of_what_is_negative(weight, bias):
    norm = nn.BatchNorm1d(1)
    norm.weight.data.fill_(weight)
    norm.bias.data.fill_(bias)
    x = bias + abs(weight) * torch.special.ndtri((torch.arange(200000, dtype=torch.float64) + 0.5) / 200000)
    negative = x[x < 0]
    expected = -3 * abs(weight) if len(negative) <= 1e-3 * len(x) else negative.mean().item()
    assert h.margins(norm).item() == pytest.approx(expected, abs=1e-3)


def test_margins_need_a_batch_norm_with_parameters():
    with pytest.raises(TypeError, match="batch_norm"):
        h.margins(nn.BatchNorm1d(3, affine=False))


# ---------------------------------------------------------------------------------------------- limits


def test_srd_is_the_logarithm_of_the_mean_where_features_differ():
    student, teacher = torch.randn(1, 3, 6).double(), torch.randn(1, 3, 6).double()
    student.requires_grad_()
    sample, batch = (h.srd_loss(student, teacher, convention=name) for name in ("paper", "published"))
    assert sample.item() == pytest.approx(batch.item() - math.log(18) - math.log(1e-8), abs=1e-6)
    torch.testing.assert_close(gradients(sample, student), gradients(batch, student), rtol=1e-6, atol=1e-9)


def test_published_srd_of_equal_features_has_no_gradient():
    student = torch.randn(2, 3, 6, requires_grad=True)
    value = h.srd_loss(student, student.detach(), convention="published")
    assert value.isfinite() and gradients(value, student)[0].abs().max() == 0


def test_vid_and_pad_of_variance_one_are_half_and_all_of_the_hint():
    student, teacher = torch.randn(2, 3, 6, 4), torch.randn(2, 3, 6, 4)
    hint = h.hint_loss(student, teacher)
    scales = torch.full((3,), math.log(math.e - 1))
    torch.testing.assert_close(h.vid_loss(student, teacher, scales, eps=1e-12), hint / 2)
    torch.testing.assert_close(h.pad_loss(student, teacher, torch.zeros_like(student), eps=1e-12), hint)


# ---------------------------------------------------------------------------------------------- channels


@pytest.mark.parametrize("function", [h.cwd_loss, h.pkd_loss])
def test_offsets_of_channels_change_nothing(function):
    student, teacher = (torch.randn(4, 3, 6, 5, dtype=torch.float64) for _ in "st")
    offsets = torch.tensor([5.0, -300.0, 0.1])[:, None, None].double()
    torch.testing.assert_close(function(student + offsets, teacher - offsets), function(student, teacher))


def test_pkd_is_half_the_squared_error_of_normalised_features():
    student, teacher = (torch.randn(4, 3, 6, 5, dtype=torch.float64) for _ in "st")
    s, t = (nn.functional.batch_norm(x, None, None, training=True, eps=1e-300) for x in (student, 7 * teacher))
    torch.testing.assert_close(h.pkd_loss(student, teacher), (s - t).square().mean() / 2)


def test_pkd_of_constant_channels():
    """Both constant: alike; one: no correlation; no gradient through either."""
    student, teacher = (torch.randn(4, 3, 6, 5) for _ in "st")
    student[:, :2], teacher[:, 0] = 0.7, -3.0
    student.requires_grad_()
    value = h.pkd_loss(student, teacher)
    torch.testing.assert_close(value, (1 + h.pkd_loss(student[:, 2:], teacher[:, 2:])) / 3)
    (grad,) = gradients(value, student)
    assert not grad[:, :2].any() and grad[:, 2].abs().min() > 0


def test_pkd_near_equality_keeps_its_digits():
    teacher = torch.randn(4, 3, 6, 5, dtype=torch.float64)
    student = teacher + 1e-4 * torch.randn(teacher.shape, dtype=torch.float64)
    student, teacher = student.float(), teacher.float()
    exact = h.pkd_loss(student.double(), teacher.double())
    assert h.pkd_loss(student, teacher).item() == pytest.approx(exact.item(), rel=1e-4) and exact < 1e-7


def test_cwd_reads_channels_last_as_it_lies():
    student, teacher = (torch.randn(2, 8, 16, 9).to(memory_format=torch.channels_last) for _ in "st")
    copies = []

    class Copies(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            copies.extend([function] * any(word in str(function) for word in ("clone", "copy", "contiguous")))
            return function(*args, **kwargs or {})

    with Copies():
        value = h.cwd_loss(student, teacher)
    assert not copies
    torch.testing.assert_close(value, h.cwd_loss(student.contiguous(), teacher.contiguous()))


# ---------------------------------------------------------------------------------------------- errors


S, T = torch.zeros(2, 3, 6, 4), torch.zeros(2, 5, 6, 4)
WRONG = [
    (lambda: h.hint_loss(S, T), ValueError, ["teacher_features[0]", "channels 3", "5"]),
    (lambda: h.hint_loss(S, S[..., 0]), ValueError, ["teacher_features[0]", "axes 4", "3"]),
    (lambda: h.hint_loss(S.int(), S), TypeError, ["student_features[0]", "int32"]),
    (lambda: h.hint_loss(S[:, :, 0, 0], S[:, :, 0, 0], lengths=[1, 2]), ValueError, ["lengths", "(B, D)"]),
    (lambda: h.vid_loss(S, S, torch.zeros(4)), ValueError, ["scales[0]", "(3,)", "(4,)"]),
    (lambda: h.vid_loss([S, S], [S, S], torch.zeros(3)), ValueError, ["scales", "2", "1"]),
    (lambda: h.vid_loss(S, S, 1.0), TypeError, ["scales", "1.0"]),
    (lambda: h.pad_loss(S, S, S[:1]), ValueError, ["log_variances[0]", "(2, 3, 6, 4)", "(1, 3, 6, 4)"]),
    (lambda: h.pad_loss(S, S, [S, S]), ValueError, ["log_variances", "1", "2"]),
    (lambda: h.pad_loss(S, S, S, eps=0.0), ValueError, ["eps", "positive", "0.0"]),
    (lambda: h.srd_loss(S, S, convention="mean"), ValueError, ["convention", "'paper'", "'mean'"]),
    (lambda: h.cwd_loss(S, T), ValueError, ["teacher_features[0]", "channels 3", "5"]),
    (lambda: h.cwd_loss(S, S, temperature=0), ValueError, ["temperature", "positive", "0"]),
    (lambda: h.pkd_loss(S, S[..., 0]), ValueError, ["teacher_features[0]", "axes 4", "3"]),
    (lambda: h.pkd_loss(S, S, group=0), TypeError, ["group", "process group"]),
    (lambda: h.ab_loss(S, S, reduction="batch"), ValueError, ["reduction", "'batchmean'", "'batch'"]),
    (lambda: h.ofd_loss(S, S, torch.zeros(5)), ValueError, ["margins[0]", "(3,)", "(5,)"]),
    (lambda: h.ofd_loss(S, S, [torch.zeros(3)] * 2), ValueError, ["margins", "1", "2"]),
    (lambda: h.VIDLoss(3, 5, initial_variance=0.0), ValueError, ["initial_variance", "0.0"]),
    (lambda: h.VIDLoss(4, 5)(S, T), ValueError, ["student_features[0]", "4 channels", "3"]),
    (lambda: h.VIDLoss(3, 4)(S, T), ValueError, ["teacher_features[0]", "4 channels", "5"]),
    (lambda: h.OFDLoss([3, 3], [5])(S, T), ValueError, ["teacher_channels", "2", "1"]),
    (lambda: h.OFDLoss(3, 5, torch.zeros(3)), ValueError, ["margins", "(5,)", "(3,)"]),
    (lambda: h.OFDLoss(0, 5), ValueError, ["student_channels", "positive", "0"]),
    (lambda: h.PADLoss([3, 3], [5, 5])(S, T), ValueError, ["student_features", "2", "1"]),
    (lambda: h.ABLoss(3), ValueError, ["teacher_channels"]),
    (lambda: h.ABLoss(side="on"), TypeError, ["ABLoss", "'side'"]),
]


@pytest.mark.parametrize("call, error, words", WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_errors(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert all(word in str(caught.value) for word in words), str(caught.value)
