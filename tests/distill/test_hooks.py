"""Hooks in networks that change, are compiled, traced, pickled, replicated; two of everything; layers in place."""

import copy
import io
import pickle

import pytest
import torch
from made_distillers import LAYERS, Network, X, distil, hooks_of, networks
from torch import nn

from abckd_kernels import ABCLoss, Distiller, abc_loss
from abckd_kernels.losses import ATLoss, HintLoss, SPLoss


class Scaled(nn.Module):
    """What an adapter, or quantisation, puts in a layer's place."""

    def __init__(self, base):
        super().__init__()
        self.base, self.gain = base, nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return self.base(x) * self.gain


def step(distiller, x=X):
    distiller.zero_grad()
    output = distiller(x)
    (output.loss + output.student.square().mean()).backward()
    return output.loss, [p.grad for p in distiller.parameters()]


def assert_same_step(ours, right):
    torch.testing.assert_close(ours[0], right[0])
    for a, b in zip(ours[1], right[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


# ---------------------------------------------------------------------------------------------- layers that change


def test_replaced_and_wrapped_layers():
    student, teacher = networks()
    distiller = distil(student, teacher, ATLoss())
    distiller(X)
    student.encoder[0] = Scaled(student.encoder[0])
    teacher.encoder[1] = Scaled(teacher.encoder[1])
    assert_same_step(step(distiller), step(distil(student, teacher, ATLoss())))
    assert student.encoder[0].gain.grad is not None
    del student.encoder[1]
    with pytest.raises(ValueError, match=r"student_layers\[1\] 'encoder.1' is no layer"):
        distiller(X)


def test_student_wrapped_afterwards():
    distiller, plain = (distil(*networks(), ATLoss()) for _ in range(2))
    distiller.student = torch.optim.swa_utils.AveragedModel(distiller.student)
    distiller.student.module.load_state_dict(plain.student.state_dict())
    distiller.student = distiller.student.module
    assert_same_step(step(distiller), step(plain))
    distiller.student = nn.Sequential()
    distiller.student.add_module("module", plain.student)
    assert list(distiller.student_state_dict()) == list(Network(3).state_dict())


def test_peft_adapters():
    peft = pytest.importorskip("peft")
    student, teacher = (nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 2)) for _ in range(2))
    early = Distiller(student, teacher, ["0@btc"], ["0@btc"], ATLoss())
    adapted = peft.get_peft_model(student, peft.LoraConfig(target_modules=["0"], init_lora_weights=False))
    x = torch.randn(2, 4, 5)
    late = Distiller(adapted, teacher, ["0@btc"], ["0@btc"], ATLoss())
    torch.testing.assert_close(early(x).loss, late(x).loss)
    late(x).loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for n, p in student.named_parameters() if "lora" in n)


# ---------------------------------------------------------------------------------------------- compiled, traced


@pytest.mark.parametrize("loss", [ATLoss(), SPLoss()], ids=["taps", "features"])
@pytest.mark.parametrize("ran_before", [False, True])
@pytest.mark.parametrize("part", ["student", "block", "in place"])
def test_compiled_students(part, ran_before, loss):
    torch.compiler.reset()
    (student, teacher), plain = networks(), distil(*networks(), loss)
    student.load_state_dict(plain.student.state_dict())
    compiled = torch.compile(student, backend="aot_eager") if part == "student" else student
    if part == "block":
        student.encoder[1] = torch.compile(student.encoder[1], backend="aot_eager")
    elif part == "in place":
        student.compile(backend="aot_eager")
    if ran_before:
        with torch.no_grad():
            compiled.eval()(X)
        compiled.train()
    distiller = distil(compiled, teacher, loss)
    try:
        for _ in range(3):
            right = step(plain)
            assert_same_step(step(distiller), right)
    except ValueError as error:
        assert ran_before and "torch.compile compiled before" in str(error)
    with torch.no_grad():
        torch.testing.assert_close(compiled.eval()(X), plain.student.eval()(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_programs_have_no_layers_to_name(name):
    student, teacher = networks()
    teacher.eval()
    for program, cause in (
        (torch.jit.trace(teacher, X), "TorchScript"),
        (torch.export.export(teacher, (X,)).module(), "exported program"),
    ):
        with pytest.raises(ValueError, match=rf"teacher_layers\[0\] '{name}' did not run.*{cause}"):
            Distiller(student, program, ["encoder.0"], [name], ATLoss())(X)


def test_programs_as_teachers_by_what_they_return():
    student, teacher = networks()
    right = Distiller(student, teacher, ["head"], ["head"], HintLoss())(X).loss
    teacher.eval()
    exported = torch.export.export(teacher, (X,)).module()
    for program in (torch.jit.trace(teacher, X), exported, torch.fx.symbolic_trace(teacher)):
        torch.testing.assert_close(Distiller(student, program, ["head"], [":"], HintLoss())(X).loss, right)
    traced = torch.fx.symbolic_trace(teacher)
    assert distil(student, traced, ATLoss(), layers=["head"])(X).loss.isfinite()


def test_the_student_can_be_traced_scripted_and_exported_between_steps():
    student, teacher = networks()
    distiller = distil(student, teacher)
    distiller(X)
    student.eval()
    scripted, exported = torch.jit.script(student), torch.export.export(student, (X,))
    for program in (scripted, torch.jit.trace(student, X), exported.module()):
        torch.testing.assert_close(program(X), student(X))
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    assert b"abckd" not in file.getvalue()


def test_layers_called_by_forward():
    class ByForward(Network):
        def forward(self, x):
            return self.head(self.encoder[1].forward(self.encoder[0](x)))

    with pytest.raises(ValueError, match=r"student_layers\[1\] 'encoder.1' did not run: ByForward calls .forward\(\)"):
        distil(ByForward(3), Network(5), ATLoss())(X)


def test_data_parallel():
    class Replicated(nn.Module):
        """As DataParallel makes replicas, one after the other."""

        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x):
            copies = self.module._replicate_for_data_parallel()
            copies._modules = {name: m._replicate_for_data_parallel() for name, m in self.module._modules.items()}
            for name, m in self.module._modules.items():
                copies._modules[name]._parameters = m._parameters
            return copies(x)

    student = Replicated(nn.Sequential(nn.Conv2d(1, 3, 3)))
    with pytest.raises(RuntimeError, match="student_layers.*DataParallel"):
        Distiller(student, Network(5), ["0"], ["head"], ATLoss())(X)
    replica = distil(*networks(), ATLoss())._replicate_for_data_parallel()
    with pytest.raises(RuntimeError, match="DistributedDataParallel"):
        replica(X)


# ---------------------------------------------------------------------------------------------- copies and pickles


def test_pickled_distillers_work():
    distiller = distil(*networks(), ABCLoss([3, 6], [5, 10], dim=4))
    right = step(distiller)
    for loaded in (pickle.loads(pickle.dumps(distiller)), copy.deepcopy(distiller)):
        assert_same_step(step(loaded), right)
        with torch.no_grad():
            for p in loaded.student.parameters():
                p.zero_()
        assert loaded(X).loss != right[0]
    assert_same_step(step(distiller), right)


def spawned(rank, distiller, file):
    torch.save(step(distiller), file)


def test_spawned_distillers_work(tmp_path):
    distiller = distil(*networks(), ATLoss())
    torch.multiprocessing.spawn(spawned, (distiller, tmp_path / "step.pt"), nprocs=1)
    assert_same_step(torch.load(tmp_path / "step.pt"), step(distiller))


# ---------------------------------------------------------------------------------------------- two of everything


def test_two_distillers_on_one_student():
    student, teacher = networks()
    one, two = distil(student, teacher, ATLoss()), Distiller(student, teacher, ["head"], ["head"], HintLoss())
    right = [distil(*networks(), ATLoss()), Distiller(*networks(), ["head"], ["head"], HintLoss())]
    for ours, alone in zip((one, two), right, strict=True):
        alone.student.load_state_dict(student.state_dict())
        alone.teacher.load_state_dict(teacher.state_dict())
        torch.testing.assert_close(ours(X).loss, alone(X).loss)


def test_two_students_teach_each_other():
    a, b = Network(3), Network(5)
    first, second = distil(a, b, ATLoss()), distil(b, a, ATLoss())
    loss = first(X).loss + second(X).loss
    loss.backward()
    for network in (a, b):
        assert network.training and all(p.requires_grad for p in network.parameters())
        assert network.encoder[0].conv.weight.grad.abs().sum() > 0


def test_a_distiller_within_a_distiller():
    student, teacher = networks()
    inner = distil(student, teacher, ATLoss())
    outer = Distiller(inner, teacher, ["student.head"], ["head"], HintLoss())
    output = outer(X)
    torch.testing.assert_close(output.student.loss, inner(X).loss)
    assert output.loss.requires_grad and not hooks_of(student)


# ---------------------------------------------------------------------------------------------- in place


class InPlace(nn.Module):
    def __init__(self, inplace, channels=3):
        super().__init__()
        self.conv, self.relu, self.head = nn.Conv2d(1, channels, 3), nn.ReLU(inplace), nn.Conv2d(channels, 1, 1)
        self.grows = False

    def forward(self, x):
        y = self.relu(self.conv(x))
        y = y.add_(1) if self.grows else y
        return self.head(y)


@pytest.mark.parametrize("loss", [ATLoss(), SPLoss(), abc_loss], ids=["taps", "features", "function"])
@pytest.mark.parametrize("layer", ["conv", "relu"])
def test_layers_in_place_behind_a_named_one(loss, layer):
    torch.manual_seed(0)
    ours = Distiller(InPlace(True), InPlace(True, 5), [layer], [layer], loss)
    plain = Distiller(InPlace(False), InPlace(False, 5), [layer], [layer], loss)
    plain.student.load_state_dict(ours.student.state_dict())
    plain.teacher.load_state_dict(ours.teacher.state_dict())
    for _ in range(3):
        assert_same_step(step(ours), step(plain))


@pytest.mark.parametrize("loss", [ATLoss(), SPLoss()], ids=["taps", "features"])
def test_copies_are_made_only_where_something_works_in_place(loss):
    """After the first step a layer that nothing changes is not copied; one that begins to be is an error, once."""
    distiller = Distiller(InPlace(False), Network(5), ["relu"], ["head"], loss)
    distiller(X)
    seen = []
    distiller.student.relu.register_forward_hook(lambda module, inputs, output: seen.append(output))
    handle = distiller.student.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    distiller(X)
    assert seen[0].data_ptr() == seen[1].data_ptr()
    handle.remove()
    distiller.student.grows = True
    with pytest.raises(RuntimeError, match="'relu'.*in place"):
        distiller(X).loss.backward()
    assert distiller(X).loss.isfinite()
