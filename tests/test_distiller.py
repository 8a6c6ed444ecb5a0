"""Distiller: hooks on named layers of two networks, and a student that stays an ordinary module."""

import copy
import io
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import nn

from abckd_kernels import ABCLoss, Distiller, abc_loss
from abckd_kernels.losses import AFDLoss, ATLoss, SemCKDLoss, at_loss, sp_loss


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.BatchNorm2d(outputs)

    def forward(self, x):
        return self.norm(self.conv(x)).tanh()


class Network(nn.Module):
    """Two blocks and a head: encoder.0, encoder.1, head."""

    def __init__(self, channels):
        super().__init__()
        self.encoder = nn.Sequential(Block(1, channels), Block(channels, 2 * channels, stride=2))
        self.head, self.unused = nn.Conv2d(2 * channels, 1, 1), nn.Conv2d(1, 1, 1)

    def forward(self, x):
        return self.head(self.encoder(x))


LAYERS = ["encoder.0", "encoder.1"]
X = torch.randn(2, 1, 8, 6, generator=torch.Generator().manual_seed(5))


def networks():
    torch.manual_seed(0)
    return Network(3), Network(5)


def learned_loss(**options):
    torch.manual_seed(1)
    return ABCLoss([3, 6], [5, 10], dim=4, **options)


def distil(student, teacher, loss=None, layers=LAYERS):
    return Distiller(student, teacher, layers, layers, learned_loss() if loss is None else loss)


def hooks_of(network):
    return [
        hook
        for module in network.modules()
        for hook in (
            *module._forward_hooks.values(),
            *module._forward_pre_hooks.values(),
            *module._backward_hooks.values(),
        )
    ]


# ---------------------------------------------------------------------------------------------- what it computes


def by_hand(student, teacher, loss, x):
    """The same step without a Distiller: features collected along the way, the loss on them."""
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


def test_teacher_is_frozen_and_stays_in_eval():
    student, teacher = networks()
    distiller = distil(student, teacher)
    distiller.train()
    before = copy.deepcopy(teacher.state_dict())
    distiller(X).loss.backward()
    assert student.training and not any(module.training for module in teacher.modules())
    assert all(not p.requires_grad and p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())  # batch norm too
    distiller.eval()
    assert not student.training


def test_what_to_train():
    distiller = distil(*networks())
    trained = {name.split(".")[0] for name, p in distiller.named_parameters() if p.requires_grad}
    assert trained == {"student", "loss"}


# ---------------------------------------------------------------------------------------------- the student afterwards


def test_hooks_do_nothing_outside_and_leave_nothing_behind():
    student, teacher = networks()
    reference = copy.deepcopy(student).eval()(X)
    distiller = distil(student, teacher)
    distiller(X)
    state = copy.deepcopy(student.state_dict())
    assert list(state) == list(Network(3).state_dict()) and hooks_of(student)
    alone = Network(3)
    alone.load_state_dict(state)
    assert torch.equal(student.eval()(X), alone.eval()(X)) and not torch.equal(reference, alone(X))
    distiller.remove_hooks()
    assert not hooks_of(student) and not hooks_of(teacher)
    with pytest.raises(RuntimeError, match="removed"):
        distiller(X)


def test_context_manager_removes_hooks_after_an_error():
    student, teacher = networks()
    with pytest.raises(KeyError), distil(student, teacher):
        raise KeyError
    assert not hooks_of(student) and not hooks_of(teacher)


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


def test_student_can_be_copied_and_used_with_hooks_on():
    student, teacher = networks()
    distil(student, teacher)
    student.eval()
    assert torch.equal(copy.deepcopy(student)(X), student(X))


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


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.head = nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Conv2d(3, 1, 1)

    def forward(self, x):
        return self.head(self.relu(self.conv(x)))


@pytest.mark.parametrize("loss", [ABCLoss([3], [5, 10], scores="similarity"), abc_loss], ids=["taps", "features"])
def test_in_place_change_of_a_named_layer_is_an_error(loss):
    distiller = Distiller(InPlace(), Network(5), ["conv"], LAYERS, loss)
    with pytest.raises(RuntimeError, match="student_layers.*'conv'.*inplace=False"):
        distiller(X)


def test_copies_of_the_student_are_free_of_the_distiller():
    distiller = distil(*networks())
    average = copy.deepcopy(distiller.student)
    buffer = io.BytesIO()
    torch.save(distiller.student, buffer)
    restored = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert len(buffer.getvalue()) < 2 * sum(p.nbytes for p in distiller.student.parameters()) + 20_000
    for twin in (average, restored):
        torch.testing.assert_close(twin.eval()(X), distiller.student.eval()(X))
        assert all(hook._collector is None for hook in hooks_of(twin))


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
