"""Teachers: with inputs and a device of their own, functions, the student itself, averages; and what is saved."""

import copy

import pytest
import torch
from made_distillers import LAYERS, Network, X, distil, networks
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from abckd_kernels import ABCLoss, Distiller
from abckd_kernels.distill import Layer, Taken, Teacher, Term
from abckd_kernels.losses import AFDLoss, ATLoss, HintLoss, SPLoss, at_loss


class Dropping(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 3), nn.Dropout(0.5), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))


# ---------------------------------------------------------------------------------------------- the student, or parts


def test_the_student_teaches_itself():
    network = Dropping().train()
    statistics = network[2].num_batches_tracked
    distiller = Distiller(network, network, ["0"], ["3"], ATLoss())
    output = distiller(X)
    assert all(module.training for module in network.modules()) and all(p.requires_grad for p in network.parameters())
    assert statistics == 1  # of the student's pass
    assert [name for name in distiller.state_dict() if not name.startswith("student.")] == []
    plain = copy.deepcopy(network).eval()
    torch.testing.assert_close(output.loss, at_loss([network[0](X)], [output.teacher]))
    assert output.teacher.shape == plain(X).shape and not output.teacher.requires_grad
    output.loss.backward()
    assert network[0].weight.grad.abs().sum() > 0 and network[3].weight.grad is None  # as a teacher it learns nothing


def test_a_teacher_that_shares_parts():
    student, teacher = Network(3), Network(3)
    teacher.encoder[0] = student.encoder[0]
    distiller = Distiller(student, teacher, ["encoder.0"], ["encoder.0"], SPLoss())
    distiller(X)
    assert all(p.requires_grad for p in student.parameters()) and student.encoder[0].training


def test_an_average_of_the_student():
    student = Network(3)
    average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    distiller = Distiller(student, Teacher(average, saved=True), LAYERS, LAYERS, ATLoss())
    assert float(distiller(X).loss) >= 0 and "teacher.n_averaged" in distiller.state_dict()
    with torch.no_grad():
        for p in student.parameters():
            p.mul_(2)
    average.update_parameters(student)
    state = copy.deepcopy(distiller.state_dict())
    other = Network(3)
    resumed = Distiller(other, Teacher(AveragedModel(other), saved=True), LAYERS, LAYERS, ATLoss())
    resumed.load_state_dict(state)
    for ours, theirs in zip(resumed.teacher.parameters(), average.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(RuntimeError, match="teacher.module.head.weight"):
        resumed.load_state_dict({name: x for name, x in state.items() if name != "teacher.module.head.weight"})


# ---------------------------------------------------------------------------------------------- inputs


class Wide(Network):
    def forward(self, x, *, gain=None, y=None):
        return super().forward(x if gain is None else gain * x)


def test_inputs_of_its_own():
    student, teacher = Network(3), Wide(5)
    distiller, x = distil(student, teacher, ATLoss()), 2 * X
    teacher.eval()
    for given in (x, (x,), {"x": x}, {"x": X, "gain": 2.0}):
        output = distiller(X, teacher_inputs=given)
        torch.testing.assert_close(output.teacher, teacher(x))
        torch.testing.assert_close(output.student, student(X))
    several = Distiller(
        student, {"a": teacher, "b": teacher}, terms=[_term("a"), _term("b")]
    )(X, teacher_inputs={"b": x})  # fmt: skip
    torch.testing.assert_close(several.teacher["a"], teacher(X))
    torch.testing.assert_close(several.teacher["b"], teacher(x))
    with pytest.raises(ValueError, match="teacher_inputs: expected some of"):
        Distiller(student, {"a": teacher, "b": teacher}, terms=[_term("a"), _term("b")])(X, teacher_inputs={"c": x})


def _term(teacher):
    return Term(LAYERS, LAYERS, ATLoss(), teacher=teacher)


def test_functions():
    student, teacher = networks()

    def features(x):
        first = teacher.encoder[0](x)
        return {"first": first, "all": [first, teacher.encoder[1](first)]}

    by_name = distil(student, teacher.eval(), ATLoss())(X)
    output = Distiller(student, features, LAYERS, [":first", ":all:1"], ATLoss())(X)
    torch.testing.assert_close(output.loss, by_name.loss)
    with pytest.raises(ValueError, match=r"teacher_layers\[0\] 'encoder.0': features is a function"):
        distil(student, features, ATLoss())
    with pytest.raises(TypeError, match="teacher: expected a module or a function, got int"):
        distil(student, 3, ATLoss())


@pytest.mark.parametrize(
    "loss", [ATLoss(), AFDLoss([3, 6], [5, 10], 4), HintLoss([3, 6], [5, 10])], ids=lambda x: type(x).__name__
)
def test_inference_mode(loss):
    class Inferring(Network):
        @torch.inference_mode()
        def forward(self, x):
            return super().forward(x)

    student, teacher = Network(3), Inferring(5)
    plain = Network(5)
    plain.load_state_dict(teacher.state_dict())
    ours, right = distil(student, teacher, loss)(X).loss, distil(student, plain, loss)(X).loss
    torch.testing.assert_close(ours, right)
    ours.backward()


def test_own_device_and_dtype():
    student, teacher = networks()
    distiller = distil(student, Teacher(teacher, device="cpu"), ATLoss())
    right = distil(student, copy.deepcopy(teacher), ATLoss())(X).loss
    torch.testing.assert_close(distiller(X).loss, right)
    distiller.to(torch.float64)
    assert teacher.head.weight.dtype == torch.float32 and student.head.weight.dtype == torch.float64
    torch.testing.assert_close(distiller(X.double(), teacher_inputs=X).loss.float(), right, rtol=1e-4, atol=1e-6)


def test_the_teacher_moves_with_the_distiller():
    student, teacher = networks()
    distiller = distil(student, teacher, ATLoss()).to(torch.float64)
    assert teacher.head.weight.dtype == torch.float64 and distiller(X.double()).loss.dtype == torch.float64
    within = nn.ModuleDict({"system": distiller}).to("meta")
    assert within and teacher.head.weight.device.type == "meta"


def test_a_source_of_features_that_runs_nothing():
    student, teacher = networks()
    first = copy.deepcopy(teacher.eval()).encoder[0](X).detach()

    class Stored:
        def bind(self, wanted):
            self.wanted = wanted
            return self

        def take(self, inputs, keywords, padding, examples=None):
            assert inputs[0] is X and examples == 7
            maps = [(x.square().mean(1), None) for x in (first, teacher.encoder[1](first).detach())]
            return Taken(None, [[x] for x in maps])

    stored = Stored()
    output = distil(student, stored, ATLoss())(X, examples=7)
    assert [one.layer for one in stored.wanted] == [Layer.parse(name) for name in LAYERS]
    assert [one.tap for one in stored.wanted] == [ATLoss().tap_options] * 2
    torch.testing.assert_close(output.loss, distil(student, teacher, ATLoss())(X).loss)


# ---------------------------------------------------------------------------------------------- what is saved


def test_checkpoints_are_without_the_teacher():
    distiller = distil(*networks(), ABCLoss([3, 6], [5, 10], dim=4))
    state = distiller.state_dict()
    assert {name.split(".")[0] for name in state} == {"student", "loss"}
    outer = nn.ModuleDict({"system": distiller})
    assert not [name for name in outer.state_dict() if "teacher" in name]
    other = nn.ModuleDict({"system": distil(*networks(), ABCLoss([3, 6], [5, 10], dim=4))})
    other.load_state_dict(outer.state_dict())
    old = {**state, **{f"teacher.{name}": x for name, x in distiller.teacher.state_dict().items()}}
    distiller.load_state_dict(old)  # checkpoints of version 0.1 hold it
    with pytest.raises(RuntimeError, match="Missing.*student.head.weight"):
        distiller.load_state_dict({name: x for name, x in state.items() if name != "student.head.weight"})


def test_student_state():
    distiller = distil(*networks())
    fresh = Network(3)
    fresh.load_state_dict(distiller.student_state_dict())
    compiled = distil(torch.compile(fresh, backend="eager"), Network(5))
    assert list(compiled.student_state_dict()) == list(fresh.state_dict())
