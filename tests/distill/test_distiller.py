"""Distiller: hooks on named layers of two networks, and a student that stays an ordinary module."""

import copy
import io
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from made_distillers import LAYERS, Network, X, distil, hooks_of, learned_loss, networks
from torch import nn

from abckd_kernels import ABCLoss, Distiller, abc_loss
from abckd_kernels.losses import AFDLoss, ATLoss, SemCKDLoss, at_loss, sp_loss

# ---------------------------------------------------------------------------------------------- what it computes


def by_hand(student, teacher, loss, x):
    """The same step without a Distiller: features collected along the way, the loss on them."""
    teacher.eval()
    first = student.encoder[0](x)
    second = student.encoder[1](first)
    with torch.no_grad():
        teacher_first = teacher.encoder[0](x)
        teacher_second = teacher.encoder[1](teacher_first)
    return student.head(second), loss([first, second], [teacher_first, teacher_second])


@pytest.mark.parametrize(
    "make_loss",
    [
        learned_loss,
        lambda: ABCLoss([3, 6], [5, 10], scores="similarity", power=1),
        lambda: ATLoss(views=["position", "time"], power=1),
        lambda: AFDLoss([3, 6], [5, 10], 4),
        lambda: SemCKDLoss([3, 6], [5, 10], 4),
        lambda: abc_loss,
        lambda: sp_loss,
    ],
    ids=["learned", "similarity", "at", "afd", "semckd", "callable", "relation"],
)
def test_equals_a_loop_written_by_hand(make_loss):
    student, teacher = networks()
    plain_student, plain_teacher = copy.deepcopy((student, teacher))
    loss = make_loss()
    with distil(student, teacher, loss) as distiller:
        output = distiller(X)
        (output.student.square().mean() + output.loss).backward()
    expected_output, expected_loss = by_hand(plain_student, plain_teacher.eval(), loss, X)
    (expected_output.square().mean() + expected_loss).backward()
    torch.testing.assert_close(output.student, expected_output)
    torch.testing.assert_close(output.teacher, plain_teacher(X))
    torch.testing.assert_close(output.loss, expected_loss)
    for (name, p), q in zip(student.named_parameters(), plain_student.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None) == name.startswith("unused")
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-7)


def test_attention_is_there_to_look_at():
    attention = distil(*networks())(X).attention
    assert attention.shape == (2, 2, 2) and torch.allclose(attention.sum(-1), torch.ones(2, 2))
    assert distil(*networks(), abc_loss)(X).attention is None


def test_losses_on_taps_get_no_features():
    """A loss that needs maps and means only leaves the teacher's features to be freed when its layers are done."""
    seen, loss = [], ATLoss()
    loss.from_taps = lambda student, teacher, **_: (seen.extend([student, teacher]), (torch.zeros(()), None))[1]
    assert distil(*networks(), loss)(X).attention is None
    assert [[tuple(x.shape) for x in maps] for maps, _ in seen] == [[(2, 8, 6), (2, 4, 3)]] * 2
    assert all(means == [None, None] for _, means in seen)
    assert ATLoss(views=["channel"]).tap_options is None


def test_losses_with_and_without_attention():
    assert distil(*networks(), AFDLoss([3, 6], [5, 10], 4))(X).attention.sum(1).allclose(torch.ones(2, 2))
    student, teacher = networks()
    with distil(student, teacher, ATLoss()) as distiller:
        output = distiller(X, lengths=torch.tensor([800, 400]), padded_length=800)
    _, expected = by_hand(student, teacher, lambda s, t: at_loss(s, t, lengths=torch.tensor([8, 4])), X)
    assert output.attention is None
    torch.testing.assert_close(output.loss, expected)


def test_lengths_are_on_the_scale_of_padded_length():
    distiller = distil(*networks())
    half = distiller(X, lengths=torch.tensor([800, 400]), padded_length=800).loss
    _, expected = by_hand(
        distiller.student, distiller.teacher, lambda s, t: distiller.loss(s, t, lengths=torch.tensor([8, 4])), X
    )
    torch.testing.assert_close(half, expected)
    assert half != distiller(X).loss


@pytest.mark.parametrize("padding", [{"lengths": torch.tensor([8, 4])}, {"padded_length": 8}], ids=str)
def test_lengths_and_padded_length_belong_together(padding):
    with pytest.raises(ValueError, match="lengths and padded_length"):
        distil(*networks())(X, **padding)


def test_arguments_go_to_both_networks():
    class Scaled(Network):
        def forward(self, x, *, gain):
            return super().forward(gain * x)

    distiller = distil(Scaled(3), Scaled(5))
    quiet, loud = (distiller(X, gain=gain) for gain in (0.1, 5.0))
    assert not torch.equal(quiet.student, loud.student) and not torch.equal(quiet.teacher, loud.teacher)


# ---------------------------------------------------------------------------------------------- teacher


def test_teacher_runs_in_eval_mode_without_gradients_and_is_not_changed():
    student, teacher = networks()
    distiller = distil(student, teacher)
    distiller.train()
    before, modes = copy.deepcopy(teacher.state_dict()), [module.training for module in teacher.modules()]
    expected = copy.deepcopy(teacher).eval()(X)
    output = distiller(X)
    output.loss.backward()
    assert torch.equal(output.teacher, expected) and not output.teacher.requires_grad
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())  # batch norm too
    assert [module.training for module in teacher.modules()] == modes
    assert student.training
    distiller.eval()
    assert not student.training


def test_what_to_train():
    distiller = distil(*networks())
    trained = {name.split(".")[0] for name, p in distiller.named_parameters() if p.requires_grad}
    assert trained == {"student", "loss"}


# ---------------------------------------------------------------------------------------------- the student afterwards


def test_nothing_is_left_in_the_networks_after_a_step_or_an_error():
    student, teacher = networks()
    distiller = distil(student, teacher)
    seen = []
    student.head.register_forward_hook(lambda *_: seen.append(len(hooks_of(student))))
    distiller(X)
    assert seen == [3]  # two of ours and this one, while the step runs
    assert len(hooks_of(student)) == 1 and not hooks_of(teacher)
    with pytest.raises(RuntimeError):
        distiller(X[:, :0])
    assert len(hooks_of(student)) == 1 and not hooks_of(teacher)
    assert list(student.state_dict()) == list(Network(3).state_dict())
    with distiller:
        distiller.remove_hooks()
    assert distiller(X).loss.isfinite()


def test_student_can_be_saved_copied_and_exported():
    student, teacher = networks()
    with distil(student, teacher) as distiller:
        distiller(X)
    student.eval()
    file = io.BytesIO()
    torch.save(student, file)
    file.seek(0)
    exported = torch.export.export(student, (X,)).module()
    for other in (torch.load(file, weights_only=False), copy.deepcopy(student), exported):
        torch.testing.assert_close(other(X), student(X))


# ---------------------------------------------------------------------------------------------- names and outputs


@pytest.mark.parametrize(
    ("student_layers", "teacher_layers", "words"),
    [
        (["encoder.0", "encodr.1"], LAYERS, ["student_layers[1]", "'encodr.1'", "'encoder.1'", "Network"]),
        (LAYERS, ["encoder.0.con", "head"], ["teacher_layers[0]", "'encoder.0.con'", "'encoder.0.conv'"]),
        (LAYERS, ["qqqqqqqq"], ["teacher_layers[0]", "encoder"]),
        ("head", LAYERS, ["student_layers", "list", "'head'"]),
        (LAYERS, [], ["teacher_layers", "non-empty"]),
        ([""], LAYERS, ["student_layers[0]", "''"]),
    ],
    ids=str,
)
def test_wrong_layer_names(student_layers, teacher_layers, words):
    student, teacher = networks()
    with pytest.raises(ValueError) as caught:
        Distiller(student, teacher, student_layers, teacher_layers, abc_loss)
    assert not [word for word in words if word not in str(caught.value)], caught.value
    assert not hooks_of(student) and not hooks_of(teacher)


class Pair(NamedTuple):
    one: torch.Tensor
    two: torch.Tensor


class Wrapped(nn.Module):
    """Returns its convolution's output as `wrap` packs it, and the network unpacks it again."""

    def __init__(self, wrap):
        super().__init__()
        self.conv, self.wrap = nn.Conv2d(1, 3, 3, padding=1), wrap

    def forward(self, x):
        return self.wrap(self.conv(x))


class Unwrapping(nn.Module):
    def __init__(self, wrap, unwrap):
        super().__init__()
        self.layer, self.unwrap, self.head = Wrapped(wrap), unwrap, nn.Conv2d(3, 1, 1)

    def forward(self, x):
        output = self.layer(x)
        self.kind = type(output)
        return self.head(self.unwrap(output))


OUTPUTS = {
    "tuple": (lambda y: (0, y), lambda y: y[1], "layer:1", tuple),
    "last": (lambda y: (0, y), lambda y: y[-1], "layer:-1", tuple),
    "list": (lambda y: [y, 0], lambda y: y[0], "layer:0", list),
    "dict": (lambda y: {"mask": y, "n": 1}, lambda y: y["mask"], "layer:mask", dict),
    "namedtuple": (lambda y: Pair(y.detach(), y), lambda y: y.two, "layer:1", Pair),
}


@pytest.mark.parametrize(("wrap", "unwrap", "name", "kind"), OUTPUTS.values(), ids=OUTPUTS)
def test_layers_that_return_several_things(wrap, unwrap, name, kind):
    student, teacher = Unwrapping(wrap, unwrap), Unwrapping(wrap, unwrap)
    plain = copy.deepcopy(student)
    output = Distiller(student, teacher, [name], [name], ABCLoss([3], [3], scores="similarity"))(X)
    (output.student.sum() + output.loss).backward()
    feature, target = plain.layer.conv(X), teacher.layer.conv(X)
    (plain.head(feature).sum() + abc_loss([feature], [target])).backward()
    assert student.kind is kind
    torch.testing.assert_close(student.layer.conv.weight.grad, plain.layer.conv.weight.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["layer", "layer:7", "layer:mask", "layer:0"])
def test_elements_that_are_no_feature(name):
    wrap, unwrap, _, _ = OUTPUTS["tuple"]
    distiller = Distiller(Unwrapping(wrap, unwrap), Network(2), [name], ["head"], abc_loss)
    with pytest.raises((TypeError, ValueError), match=rf"student_layers\[0\] '{name}'"):
        distiller(X)


def test_layer_that_runs_twice_or_never():
    class Twice(Network):
        def forward(self, x):
            return self.unused(self.unused(super().forward(x)))

    with pytest.raises(ValueError, match=r"student_layers\[0\] 'unused' ran more than once"):
        Distiller(Twice(2), Network(2), ["unused"], ["head"], abc_loss)(X)
    never = distil(Network(2), Network(2), layers=["head", "unused"])
    with pytest.raises(ValueError, match=r"\[1\] 'unused' did not run"):
        never(X)


def test_a_failed_step_leaves_the_distiller_usable():
    distiller = distil(*networks())
    with pytest.raises(RuntimeError):
        distiller(X[:, :0])
    assert distiller(X).loss.isfinite()


def test_one_layer_may_serve_several_times():
    layers = ["encoder.1", "encoder.1"]
    loss = Distiller(*networks(), layers, layers, ABCLoss([6, 6], [10, 10], scores="uniform"))(X).loss
    once = Distiller(*networks(), layers[:1], layers[:1], ABCLoss([6], [10], scores="uniform"))(X).loss
    torch.testing.assert_close(loss, once)


# ---------------------------------------------------------------------------------------------- in training


def test_copies_of_the_student_are_free_of_the_distiller():
    distiller = distil(*networks())
    distiller(X)
    average = copy.deepcopy(distiller.student)
    buffer = io.BytesIO()
    torch.save(distiller.student, buffer)
    restored = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert b"abckd" not in buffer.getvalue()
    for twin in (average, restored):
        torch.testing.assert_close(twin.eval()(X), distiller.student.eval()(X))
        assert not hooks_of(twin)


def test_copy_of_a_distiller_hooks_its_own_networks():
    distiller = distil(*networks())
    twin = copy.deepcopy(distiller)
    torch.testing.assert_close(twin(X).loss, distiller(X).loss)
    with torch.no_grad():
        for parameter in twin.student.parameters():
            parameter.zero_()
    assert twin(X).loss != distiller(X).loss


def test_autocast():
    student, teacher = networks()
    distiller = distil(student, teacher)
    expected = distiller(X).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = distiller(X)
        loss = output.loss + output.student.float().square().mean()
    loss.backward()
    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, expected, rtol=0.05, atol=0.01)
    trained = [p for name, p in distiller.named_parameters() if p.requires_grad and "unused" not in name]
    assert all(p.grad.isfinite().all() and p.grad.dtype == p.dtype for p in trained)


def test_training_lowers_the_loss():
    distiller = distil(*networks(), ABCLoss([3, 6], [5, 10], scores="similarity"))
    optimizer = torch.optim.Adam([p for p in distiller.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(40):
        loss = distiller(X).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def train_on_one_rank(rank, rendezvous, results):
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    torch.manual_seed(rank)  # DDP makes the parameters equal
    parallel = nn.parallel.DistributedDataParallel(
        Distiller(Network(3), Network(5), LAYERS, LAYERS, ABCLoss([3, 6], [5, 10], dim=4)), find_unused_parameters=True
    )
    optimizer = torch.optim.SGD([p for p in parallel.parameters() if p.requires_grad], 0.1)
    for _ in range(3):
        output = parallel(torch.randn(2, 1, 8, 6))
        optimizer.zero_grad()
        (output.loss + output.student.square().mean()).backward()
        optimizer.step()
    trained = {name: p.detach() for name, p in parallel.module.named_parameters() if p.requires_grad}
    torch.save(trained, f"{results}/{rank}.pt")
    dist.destroy_process_group()


def test_distributed_data_parallel(tmp_path):
    torch.multiprocessing.spawn(train_on_one_rank, (tmp_path / "rendezvous", tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    torch.manual_seed(0)
    start = dict(Network(3).named_parameters())
    assert not torch.equal(first["student.encoder.0.conv.weight"], start["encoder.0.conv.weight"])


def test_features_path_gets_features():
    seen = []

    def loss(students, teachers):
        seen.append((students, teachers))
        return sum(x.square().mean() for x in students)

    output = distil(*networks(), loss)(X)
    output.loss.backward()
    assert [[tuple(x.shape) for x in side] for side in seen[0]] == [
        [(2, 3, 8, 6), (2, 6, 4, 3)],
        [(2, 5, 8, 6), (2, 10, 4, 3)],
    ]
    assert not any(x.requires_grad for x in seen[0][1])


@pytest.mark.parametrize("loss", [ATLoss(), learned_loss(), sp_loss], ids=["at", "learned", "relation"])
def test_nothing_of_a_step_waits_for_the_device(loss):
    """With tensors that have no values, nothing can be read from them."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    distiller = distil(*networks(), loss)
    with FakeTensorMode(allow_non_fake_inputs=True):
        output = distiller(torch.empty(2, 1, 8, 6))
        (output.loss + output.student.square().mean()).backward()
    assert output.loss.dim() == 0
