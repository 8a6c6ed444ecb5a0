"""Attention-map losses and cross-layer losses with learned parts: rows, and what is theirs alone."""

import naive_attention as naive
import pytest
import torch
from suite import *  # noqa: F403 - the tests that every loss passes
from suite import Loss, Vectors, gradients

from abckd_kernels.losses import (
    AFDLoss,
    ATLoss,
    SemCKDLoss,
    afd_loss,
    at_loss,
    semckd_loss,
)

OTHER = (4, 9, 4)
ALL_VIEWS = ("position", "time", "frequency", "channel")
LAYERS = {"student": [(3, 6, 5), (2, 4, 3)], "teacher": [(3, 7, 6), (2, 4, 3), (4, 7, 6)]}
EQUAL_CHANNELS = {"student": [(3, 6, 5), (3, 4, 3)], "teacher": [(3, 7, 6), (3, 4, 3), (3, 7, 6)]}
CHANNELS = [3, 2], [3, 2, 4]


def attention(seed, axis):
    """To `extra` of a row: an attention (B, n, m), the same for all samples, that sums to 1 along an axis."""

    def make(student, teacher):
        scores = torch.randn(1, len(student), len(teacher), generator=torch.Generator().manual_seed(seed))
        return {"attention": scores.softmax(axis).expand(len(student[0]), -1, -1)}

    return make


PARTS = {"excused": {"test_module_is_the_function": "the module has learned parts, which rows of their own test"}}
LEARNED = {"invariant": "batch", "zero_at_equality": False}
LOSSES = [
    Loss("at", at_loss, naive.at, teacher=OTHER),
    Loss("at", at_loss, naive.at, options={"power": 1}),
    Loss("at", at_loss, naive.at, teacher=OTHER, options={"distance": "mean"}, half_scale=24),
    Loss("at", at_loss, naive.at, teacher=OTHER, options={"distance": "norm"}),
    Loss("at", at_loss, naive.at, teacher=OTHER, options={"views": ("time",)}),
    Loss("at", at_loss, naive.at, teacher=OTHER, options={"views": ("frequency",), "power": 1}, spatial=(2,)),
    Loss("at", at_loss, naive.at, teacher=(3, 9, 4), options={"views": ("channel",)}, invariant="scale batch"),
    Loss("at", at_loss, naive.at, teacher=(3, 9, 4), options={"views": ALL_VIEWS}, spatial=(2,),
         invariant="scale batch"),
    Loss("at", at_loss, naive.at, teacher=(3, 9, 4), options={"views": ALL_VIEWS, "power": 1, "distance": "mean"},
         spatial=(2,), invariant="scale batch", half_scale=24),
    Loss("afd", afd_loss, naive.afd, **LAYERS, zero_at_equality=False, **PARTS),
    Loss("afd", afd_loss, naive.afd, **LAYERS, options={"distance": "mean"}, extra=attention(1, 1),
         half_scale=24, zero_at_equality=False, **PARTS),
    Loss("afd", afd_loss, naive.afd, student=[(3, 6, 5)], teacher=[(3, 6, 5)], **PARTS),
    Loss("afd_learned", None, naive.afd_learned, **LAYERS, module=lambda: AFDLoss(*CHANNELS, 4), of_batch=True,
         excused={"test_a_batch_of_one_position_moves_no_statistics": "its key mixer has one row per student layer"},
         **LEARNED),
    Loss("semckd", semckd_loss, naive.semckd, **EQUAL_CHANNELS, invariant="batch", zero_at_equality=False,
         **PARTS),
    Loss("semckd", semckd_loss, naive.semckd, **EQUAL_CHANNELS, extra=attention(2, 2), invariant="batch",
         zero_at_equality=False, **PARTS),
    Loss("semckd", semckd_loss, naive.semckd, student=[(3, 6, 5)], teacher=[(3, 6, 5)], invariant="batch", **PARTS),
    Loss("semckd_linear", None, naive.semckd_learned, **LAYERS, module=lambda: SemCKDLoss(*CHANNELS, 4), spatial=(2,),
         **LEARNED),
    Loss("semckd_convolutions", None, naive.semckd_learned, **LAYERS, spatial=(2,), of_batch=True,
         module=lambda: SemCKDLoss(*CHANNELS, 4, regressor="convolutions"), **LEARNED),
]  # fmt: skip


# ---------------------------------------------------------------------------------------------- attention maps


def test_views_are_averaged():
    student, teacher = torch.randn(2, 3, 6, 5), torch.randn(2, 3, 9, 4)
    alone = [at_loss(student, teacher, views=[view]) for view in ALL_VIEWS]
    torch.testing.assert_close(at_loss(student, teacher, views=ALL_VIEWS), torch.stack(alone).mean())


def test_pairs_of_any_shape_in_one_call():
    """One launch for all features: 3 and 4 axes, dtypes and sizes side by side."""
    students = [torch.randn(2, 3, 6, 5), torch.randn(2, 4, 8).bfloat16()]
    teachers = [torch.randn(2, 5, 3, 9), torch.randn(2, 2, 5).double()]
    alone = [at_loss(s, t) for s, t in zip(students, teachers, strict=True)]
    together = at_loss(students, teachers)
    assert [x.dtype for x in (*alone, together)] == [torch.float32, torch.float64, torch.float64]
    torch.testing.assert_close(together, (alone[0] + alone[1]) / 2)


def test_time_of_a_feature_without_bands():
    student, teacher = torch.randn(2, 3, 6, 5), torch.randn(2, 3, 8)
    expected = at_loss(student.square().mean((1, 3), keepdim=True).sqrt()[..., 0], teacher, views=["position"])
    torch.testing.assert_close(at_loss(student, teacher, views=["time"]), expected)


def test_gradients_survive_float16():
    """Of the sum over positions, scaled as a GradScaler does; of the published mean they are all zero without."""
    student, teacher = (torch.randn(4, 32, 200, 64, generator=torch.Generator().manual_seed(i)).half() for i in (0, 1))
    student.requires_grad_()
    (published,) = gradients(at_loss(student, teacher, distance="mean"), student)
    (ours,) = gradients(at_loss(student, teacher), student)
    assert (published == 0).all() and (ours != 0).float().mean() > 0.8
    (scaled,) = gradients(at_loss(student, teacher) * 2.0**10, student)
    assert (scaled != 0).float().mean() > 0.999


# ---------------------------------------------------------------------------------------------- cross-layer losses


@pytest.mark.parametrize("function, definition, axis", [(afd_loss, naive.afd, 1), (semckd_loss, naive.semckd, 2)])
def test_attention_of_each_sample_gets_gradients(function, definition, axis):
    generator = torch.Generator().manual_seed(0)
    students = [torch.randn(3, 2, 4, 3, generator=generator, dtype=torch.float64) for _ in range(2)]
    teachers = [torch.randn(3, 2, 5, 3, generator=generator, dtype=torch.float64) for _ in range(3)]
    scores = torch.randn(3, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)

    def loss(scores):
        return function(students, teachers, attention=scores.softmax(axis))

    arrays = ([x.numpy() for x in group] for group in (students, teachers))
    expected = definition(*arrays, attention=scores.detach().softmax(axis).numpy())
    assert loss(scores).item() == pytest.approx(expected, rel=1e-9)
    assert torch.autograd.gradcheck(loss, scores)


def test_equal_sizes_need_not_be_neighbours():
    """Published AFD takes the wrong maps here: teacher layers A, B, C, B, A, as in a U-Net."""
    shapes = [(3, 8, 6), (4, 4, 3), (5, 2, 2), (4, 4, 3), (3, 8, 6)]
    teachers = [torch.randn(2, *shape) for shape in shapes]
    students = [torch.randn(2, 3, 6, 5), torch.randn(2, 2, 4, 3)]
    loss = AFDLoss([3, 2], [shape[0] for shape in shapes], 4).eval()
    value, weights = loss(students, teachers, return_attention=True)
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 5))
    torch.testing.assert_close(value, afd_loss(students, teachers, attention=weights))
    order = [4, 1, 2, 3, 0]
    shuffled = afd_loss(students, [teachers[j] for j in order], attention=weights[:, :, order])
    torch.testing.assert_close(shuffled, value)


def test_one_teacher_layer_is_attention_transfer():
    student, teacher = torch.randn(2, 3, 9, 5), torch.randn(2, 4, 6, 4)
    torch.testing.assert_close(afd_loss(student, teacher), at_loss(student, teacher))


def test_weights_are_of_the_terms():
    students, teachers = [torch.randn(2, 3, 5, 4) for _ in range(2)], [torch.randn(2, 3, 5, 4) for _ in range(3)]
    alone = [afd_loss(students, teacher) for teacher in teachers]
    expected = 2 * alone[0] - alone[1] + 0.5 * alone[2]
    torch.testing.assert_close(afd_loss(students, teachers, weights=[2, -1, 0.5]), expected)
    alone = [semckd_loss(student, teachers) for student in students]
    torch.testing.assert_close(semckd_loss(students, teachers, weights=[2, 3]), 2 * alone[0] + 3 * alone[1])


def test_projections_for_each_teacher_layer():
    students = [[torch.randn(2, c, 6, 5) for c in (3, 2)], torch.randn(2, 2, 4, 3)]
    teachers = [torch.randn(2, 3, 5, 5), torch.randn(2, 2, 7, 3)]
    single = [semckd_loss(s, t) for s, t in zip(students[0], teachers, strict=True)]
    torch.testing.assert_close(semckd_loss(students[:1], teachers), (single[0] + single[1]) / 2)
    with pytest.raises(ValueError, match=r"student_features\[1\].*teacher_features\[0\]"):
        semckd_loss(students, teachers)


@pytest.mark.parametrize("regressor", ["linear", "convolutions"])
def test_one_sample_does_not_need_the_others(regressor):
    """The published form ties learned parts to one batch size; here any serves, also the last, short one."""
    torch.manual_seed(0)
    loss = SemCKDLoss([3], [2, 4], 4, regressor=regressor).eval()
    student, teachers = torch.randn(5, 3, 6, 4), [torch.randn(5, 2, 6, 4), torch.randn(5, 4, 3, 5)]
    alone = [loss(student[b : b + 1], [t[b : b + 1] for t in teachers]) for b in range(5)]
    torch.testing.assert_close(loss(student, teachers), torch.stack(alone).mean())


def test_published_form_is_of_one_batch_size():
    loss = SemCKDLoss([3], [2], 2, batch_size=8)
    with pytest.raises(ValueError, match="batch_size 8, got 5"):
        loss(torch.randn(5, 3, 6, 4), torch.randn(5, 2, 6, 4))


def test_more_layers_than_published_names_allow():
    loss = SemCKDLoss([2] * 2, [2] * 12, 4)
    assert len(list(loss.parameters())) == len(dict(loss.named_parameters())) == 4 * 14 + 2 * 24


@pytest.mark.parametrize("regressor", ["linear", "convolutions"])
def test_features_without_bands(regressor):
    torch.manual_seed(0)
    flat, square = (SemCKDLoss([3], [2], 4, regressor=regressor, spatial_axes=axes) for axes in (1, 2))
    state = square.state_dict()
    for name, value in flat.state_dict().items():
        state[name] = torch.nn.functional.pad(value[..., None], (1, 1)) if value.dim() == 3 and value.shape[2] == 3 \
            else value.view(state[name].shape)  # fmt: skip
    square.load_state_dict(state)
    student, teacher = torch.randn(4, 3, 9), torch.randn(4, 2, 7)
    torch.testing.assert_close(flat(student, teacher), square(student[..., None], teacher[..., None]))


# ---------------------------------------------------------------------------------------------- published numbers


def _afd(peer):
    n, m = len(peer.students), len(peer.teachers)
    loss = AFDLoss([6] * n, [10] * m, peer.entry["hyper"]["qk_dim"], distance="mean", weights=[1] * m).double()
    published = {
        "keys": "attention.linear_trans_s.key_layer", "key_mixer": "attention.linear_trans_s.bilinear",
        "queries": "attention.linear_trans_t.query_layer", "norm": "bn", "student_embedding": "attention.p_s",
        "teacher_embedding": "attention.p_t",
    }  # fmt: skip
    return _with_parameters(peer, loss, lambda name: [published.get(part, part) for part in name.split(".")])


def _semckd(peer):
    channels = [[x.shape[1] for x in group] for group in (peer.students, peer.teachers)]
    loss = SemCKDLoss(*channels, 2, regressor="convolutions", batch_size=8).double()

    def published(name):
        part, *rest = name.split(".")
        if part != "regressors":
            layer, linear, value = rest
            return [
                {"queries": "query_weight", "keys": "key_weight"}[part] + layer,
                f"linear{int(linear) // 2 + 1}",
                value,
            ]
        i, j, part, layer, value = rest
        return [f"regressor{i}{j}.regressor", str(3 * int(layer) + (part == "norms")), value]

    return _with_parameters(peer, loss, published)


def _with_parameters(peer, loss, published):
    """The loss, and the parameters by their published names; published biases that change nothing are left out."""
    names = {name: ".".join(published(name)) for name in loss.state_dict()}
    loss.load_state_dict({name: peer[f"p.{theirs}"] for name, theirs in names.items()})
    return loss(peer.students, peer.teachers), {names[name]: value for name, value in loss.named_parameters()}


PUBLISHED = {
    "md__AT_p2_3layers": (at_loss, {"distance": "mean", "weights": [1, 1, 1]}),
    "rep__AT_p2_edge_zero_samples": (at_loss, {"distance": "mean"}),
    "td__AT_code": (at_loss, {"distance": "mean"}),
    "td__AT_paper": (at_loss, {"distance": "norm"}),
    "afd__AFD_eq_2s_3t": _afd,
    "afd__AFD_up_1s_1t": _afd,
    "sem__SemCKD_square_2s_3t": _semckd,
    "sem__SemCKD_s_nonsquare_t_square_small": _semckd,
}
DIFFERS = dict.fromkeys(
    ("rep__AT_p2_s_larger_t_square", "rep__AT_p2_s_square_t_larger"),
    "pools the larger feature, to a square, and then squares, so that opposite signs cancel; ours pools the energy",
)


@pytest.mark.parametrize("name", ["rep__AT_p2_s_larger_t_square", "rep__AT_p2_s_square_t_larger"])
def test_energy_is_pooled_not_the_feature(name):
    peer = Vectors(name)
    assert at_loss(peer.students, peer.teachers, distance="mean").item() != pytest.approx(peer["loss"].item(), rel=1e-3)
    (student,), (teacher,) = peer.students, peer.teachers
    target = tuple(min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True))
    resized = [torch.nn.functional.adaptive_avg_pool2d(x, target) for x in (student, teacher)]
    peer.assert_equal(at_loss(*resized, distance="mean"))


# ---------------------------------------------------------------------------------------------- errors


S, T = torch.zeros(2, 3, 6, 4), torch.zeros(2, 5, 6, 4)
WRONG = [
    (lambda: at_loss(S.int(), T), TypeError, ["student_features[0]", "float32", "int32"]),
    (lambda: at_loss([S], [T, T]), ValueError, ["teacher_features", "1", "2"]),
    (lambda: at_loss(S, T[:1]), ValueError, ["teacher_features[0]", "batch size 2", "1"]),
    (lambda: at_loss(S, T[..., 0]), ValueError, ["teacher_features[0]", "axes 4", "3"]),
    (lambda: at_loss(S, T, power=3), ValueError, ["power", "1 or 2", "3"]),
    (lambda: at_loss(S, T, distance="code"), ValueError, ["distance", "'mean'", "'code'"]),
    (lambda: at_loss(S, T, views="time"), ValueError, ["views", "list", "'time'"]),
    (lambda: at_loss(S, T, views=[]), ValueError, ["views", "'frequency'", "[]"]),
    (lambda: at_loss(S, T, views=["bands"]), ValueError, ["views", "'frequency'", "'bands'"]),
    (lambda: at_loss(S, T, views=["channel"]), ValueError, ["teacher_features[0]", "channels 3", "5"]),
    (lambda: at_loss(S[..., 0], T[..., 0], views=["frequency"]), ValueError, ["views", "'frequency'", "bands"]),
    (lambda: at_loss(S, T, weights=[1, 2]), ValueError, ["weights", "1", "2"]),
    (lambda: ATLoss(distance="code"), ValueError, ["distance", "'code'"]),
    (lambda: ATLoss(temperature=1), TypeError, ["ATLoss", "'temperature'"]),
    (lambda: afd_loss([S, S[..., 0]], T), ValueError, ["student_features[1]", "4 axes", "3"]),
    (lambda: afd_loss(S, T, attention=torch.ones(2, 1)), ValueError, ["attention", "(2, 1, 1)", "(2, 1)"]),
    (lambda: afd_loss(S, [T, T], weights=[1]), ValueError, ["weights", "2", "1"]),
    (lambda: AFDLoss([], [3]), ValueError, ["student_channels", "[]"]),
    (lambda: AFDLoss([3], [5], 0), ValueError, ["dim", "0"]),
    (lambda: AFDLoss([3], [5])([S, S], T), ValueError, ["student_features", "1 layers", "2"]),
    (lambda: AFDLoss([3], [4])(S, T), ValueError, ["teacher_features[0]", "4 channels", "5"]),
    (lambda: semckd_loss(S, T), ValueError, ["student_features[0]", "5 channels", "teacher_features[0]", "3"]),
    (lambda: semckd_loss([[S, S]], S), ValueError, ["student_features[0]", "1", "2"]),
    (lambda: semckd_loss(S, S, attention=[1.0]), ValueError, ["attention", "(2, 1, 1)", "[1.0]"]),
    (lambda: SemCKDLoss([3], [5], regressor="mlp"), ValueError, ["regressor", "'linear'", "'mlp'"]),
    (lambda: SemCKDLoss([3], [5], batch_size=0), ValueError, ["batch_size", "0"]),
    (lambda: SemCKDLoss([3], [5], spatial_axes=3), ValueError, ["spatial_axes", "1 or 2", "3"]),
    (lambda: SemCKDLoss([3], [5])(S, T[..., 0]), ValueError, ["teacher_features[0]", "4 axes", "(2, 5, 6)"]),
    (lambda: SemCKDLoss([3], [4])(S, T), ValueError, ["teacher_features[0]", "4 channels", "5"]),
]


@pytest.mark.parametrize("call, error, words", WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_errors(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert all(word in str(caught.value) for word in words), str(caught.value)
