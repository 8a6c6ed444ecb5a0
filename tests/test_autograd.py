"""Derivatives against finite differences, the dispatcher's own checks, torch.compile, and what backward allocates.

The ops are differentiated by the extension's code and by its twin in Python, which serves where there was no compiler.
"""

import importlib
import subprocess
import sys
from collections import Counter

import cases
import pytest
import torch
from torch import nn
from torch._inductor.utils import fresh_cache
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from abckd_kernels import ABCLoss, Distiller, abc_loss, backends, compress, tap, use_backend
from abckd_kernels.ops import contract

PATHS = (("extension",) if backends.extension() is not None else ()) + ("python",)
LENGTHS = torch.tensor([6, 2])
FEATURE = (2, 3, 6, 4)


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    if request.param == "python":
        in_python(monkeypatch)
    return request.param


def in_python(monkeypatch):
    """The ops differentiated by Python's code, as where there is no extension."""
    for name, made in contract.CONTRACTS.items():
        module = importlib.import_module(f"abckd_kernels.ops.{name}")
        monkeypatch.setattr(module, f"_{name}", contract.composite(made))


def leaves(*shapes, dtype=torch.float64):
    """Features away from zero, where |x| has a kink."""
    made = [cases.feature(shape, dtype, seed) for seed, shape in enumerate(shapes)]
    return [torch.where(x.abs() < 0.05, 0.05, x).requires_grad_() for x in made]


# ---------------------------------------------------------------------------------------------- finite differences


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "padded"])
@pytest.mark.parametrize("power", [1, 2])
def test_tap(path, power, lengths):
    def through_all_outputs(x):
        tapped = tap(x, power=power, lengths=lengths)
        return tapped.feature * tapped.feature, tapped.map, tapped.mean

    assert torch.autograd.gradcheck(through_all_outputs, leaves(FEATURE))


@pytest.mark.parametrize("per_frame", [False, True])
@pytest.mark.parametrize("scored", [False, True])
def test_compress(path, scored, per_frame):
    students = [x.detach().square().requires_grad_() for x in leaves((2, 6, 4), (2, 3, 5))]
    teachers = [x.detach().square() for x in leaves((2, 4, 4), (2, 6, 3), (2, 5, 5))]
    scores = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True) if scored else None

    def distances_and_attention(*students, scores=None):
        return compress(students, teachers, scores=scores, per_frame=per_frame, lengths=LENGTHS)[: 2 if scored else 1]

    if scored:
        assert torch.autograd.gradcheck(lambda s, *maps: distances_and_attention(*maps, scores=s), (scores, *students))
    else:
        assert torch.autograd.gradcheck(distances_and_attention, students)


@pytest.mark.parametrize("options", cases.OPTIONS.values(), ids=cases.OPTIONS)
def test_abc_loss(path, options):
    teachers = [x.detach() for x in leaves((2, 2, 6, 4), (2, 4, 5, 3))]
    students = leaves(FEATURE, (2, 1, 4, 5))
    assert torch.autograd.gradcheck(lambda *x: abc_loss(x, teachers, lengths=LENGTHS, **options), students)


def test_abc_loss_module(path):
    module, students = ABCLoss([3, 1], [2, 4], dim=3).double(), leaves(FEATURE, (2, 1, 4, 5))
    teachers, parameters = [x.detach() for x in leaves((2, 2, 6, 4), (2, 4, 5, 3))], dict(module.named_parameters())

    def loss(first, second, *values):
        state = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(module, state, ([first, second], teachers), {"lengths": LENGTHS})

    assert torch.autograd.gradcheck(loss, [*students, *parameters.values()])


def test_both_paths_agree_bit_for_bit(monkeypatch):
    results = []
    for name in PATHS:
        if name == "python":
            in_python(monkeypatch)
        students, teachers = cases.DOWN.features(torch.float32)
        loss = abc_loss(students, teachers)
        results.append([loss, *torch.autograd.grad(loss, students)])
    assert all(map(torch.equal, results[0], results[-1]))


# ---------------------------------------------------------------------------------------------- the dispatcher


def overloads(op):
    """abckd::op and its backends that can run on the CPU here."""
    packet = getattr(torch.ops.abckd, op)
    names = ["default", "reference", *(["triton"] if backends.TRITON_INTERPRET else [])]
    return [pytest.param(getattr(packet, name), id=f"{op}.{name}") for name in names]


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "padded"])
@pytest.mark.parametrize("op", overloads("tap_forward"))
def test_opcheck_tap_forward(op, lengths):
    features = [cases.feature(FEATURE), cases.channels_last(cases.feature(FEATURE))]
    torch.library.opcheck(op, (features, 2, True, lengths, 6))
    torch.library.opcheck(op, (features, 1, False, lengths, 6))


@pytest.mark.parametrize("op", overloads("tap_backward"))
def test_opcheck_tap_backward(op):
    features = [cases.feature(FEATURE), cases.channels_last(cases.feature(FEATURE, torch.bfloat16))]
    grads, maps, means = [features[0], None], [torch.randn(2, 6, 4), None], [None, torch.randn(2, 3)]
    torch.library.opcheck(op, (grads, features, maps, means, 2, LENGTHS, 6))


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("op", overloads("compress_forward"))
def test_opcheck_compress_forward(op, scored):
    students, teachers = [torch.rand(2, 6, 4)], [torch.rand(2, 3, 4), torch.rand(2, 5, 6)]
    scores = torch.randn(2, 1, 2) if scored else None
    torch.library.opcheck(op, (students, teachers, scores, None, [3, 4], False, 0.1, LENGTHS, 6, True))


@pytest.mark.parametrize("needed", [[True, True], [True, False], [False, True]], ids=str)
@pytest.mark.parametrize("op", overloads("compress_backward"))
def test_opcheck_compress_backward(op, needed):
    attention = torch.rand(2, 2, 3)
    operands = torch.randn(2, 2), attention, attention, attention.cos(), torch.randn(2, 2, 3, 4), [6, 4, 3, 5]
    torch.library.opcheck(op, (*operands, LENGTHS, 6, needed))


# ---------------------------------------------------------------------------------------------- torch.compile


class Tapping(nn.Module):
    """Convolution, tap, convolution."""

    def __init__(self, observe=tap):
        super().__init__()
        self.observe = observe
        self.first, self.second = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x):
        tapped = self.observe(self.first(x))
        return self.second(tapped.feature).square().mean() + tapped.map.square().mean() + tapped.mean.square().mean()


class Stack(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, channels, 3, padding=1), nn.Conv2d(channels, 2, 3, padding=1, stride=2)

    def forward(self, x):
        return self.second(self.first(x).tanh())


def distiller():
    return Distiller(Stack(3), Stack(5), ["first", "second"], ["first", "second"], ABCLoss([3, 2], [5, 2], dim=4))


def distillation(module, x):
    output = module(x)
    return output.loss + output.student.square().mean()


def module_loss(module, x):
    return module([x, x[:, :, ::2] * 2], [x.cos(), x.sin()])


COMPILED = {
    "tap": (Tapping, lambda module, x: module(x)),
    "abc_loss": (nn.Identity, lambda _, x: abc_loss([x.sin(), x[:, :, ::2]], [x.cos(), x.exp()], lengths=LENGTHS)),
    "abc_loss_frame_mask": (
        nn.Identity,
        lambda _, x: abc_loss([x.sin()], [x.cos(), x.exp()], normalize="frame", mask=torch.tensor([[True, False]])),
    ),
    "ABCLoss": (lambda: ABCLoss([2, 2], [2, 2], dim=3), module_loss),
    "Distiller": (distiller, distillation),
}


def loss_and_gradients(function, module, x):
    x = x.detach().requires_grad_()
    loss = function(module, x)
    inputs = [x, *(p for p in module.parameters() if p.requires_grad)]
    return [loss, *torch.autograd.grad(loss, inputs, allow_unused=True)]


def check_compiled(name, shapes=((2, 2, 6, 8), (2, 2, 10, 12)), **options):
    torch._dynamo.reset()
    torch.manual_seed(0)
    make, function = COMPILED[name]
    module = make()
    compiled = torch.compile(function, fullgraph=True, **options)
    for shape in shapes:
        x = torch.randn(shape)
        expected, ours = (loss_and_gradients(f, module, x) for f in (function, compiled))
        for left, right in zip(ours, expected, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_equals_eager(name):
    check_compiled(name, backend="aot_eager")


def test_compiled_with_dynamic_shapes():
    check_compiled("abc_loss", backend="aot_eager", dynamic=True)


def test_compiled_by_inductor():
    # Its cache on disk doesn't tell instruction sets apart: code for vectors of 8 serves vectors of 16, and is wrong.
    with fresh_cache():
        check_compiled("Distiller", shapes=[(2, 2, 6, 8)])


def test_batch_size_may_be_dynamic():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: abc_loss([x.sin()], [x.cos()]), fullgraph=True, backend=counter)
    for batch in (3, 5, 9):
        x = torch.randn(batch, 2, 6, 4)
        torch._dynamo.mark_dynamic(x, 0)
        torch.testing.assert_close(compiled(x), abc_loss([x.sin()], [x.cos()]))
    assert counter.frame_count == 1


# ---------------------------------------------------------------------------------------------- what backward allocates

NET_INPUT = (2, 2, 64, 64)
FEATURE_BYTES = 2 * 3 * 64 * 64 * 4


class Operators(TorchDispatchMode):
    """Counts operators that return a new tensor of the feature's size."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **kwargs or {})
        flat = results if isinstance(results, list | tuple) else [results]
        known = {x.data_ptr() for x in torch.utils._pytree.tree_leaves(args) if isinstance(x, torch.Tensor)}
        for x in flat:
            if isinstance(x, torch.Tensor) and x.nbytes >= FEATURE_BYTES and x.data_ptr() not in known:
                self.counts[function.overloadpacket._qualified_op_name] += 1
        return results


def split(feature):
    """The naive form: network and loss both use the feature, so autograd materialises two gradients and adds them."""
    return tap(feature)._replace(feature=feature)


def operators_in_backward(observe):
    x = torch.randn(NET_INPUT, requires_grad=True)
    loss = Tapping(observe)(x)
    with Operators() as operators:
        loss.backward()
    operators.counts.pop("aten::convolution_backward", None)  # the network's own
    return {name: count for name, count in operators.counts.items() if "abckd" in name or "add" in name}


def large_memory_work_in_backward(observe):
    """Allocations of at least a feature, and additions of tensors of a feature's shape."""
    loss = Tapping(observe)(torch.randn(NET_INPUT, requires_grad=True))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=True) as record:
        loss.backward()
    events = record.profiler.kineto_results.events()
    allocations = sum(event.name() == "[memory]" and event.nbytes() >= FEATURE_BYTES for event in events)
    additions = sum("aten::add" in event.name() and [2, 3, 64, 64] in event.shapes() for event in events)
    return allocations, additions


def test_backward_writes_one_tensor_of_feature_size(path):
    assert operators_in_backward(tap) == {"abckd::tap_backward": 1}


def test_the_naive_form_would_be_noticed(path):
    assert operators_in_backward(split) == {"abckd::tap_backward": 1, "aten::add": 1}


def test_tap_allocates_once_what_the_network_does_not(path):
    without, _ = large_memory_work_in_backward(lambda feature: tap(feature.detach())._replace(feature=feature))
    assert large_memory_work_in_backward(tap) == (without + 1, 0)
    assert large_memory_work_in_backward(split)[1] > 0


def test_forward_keeps_no_copy_of_the_feature(path):
    x = torch.randn(2, 3, 64, 64, requires_grad=True)
    with Operators() as operators:
        tap(x * 1)
    assert operators.counts == {"aten::mul": 1}


def test_backward_follows_the_choice_that_holds_when_it_runs():
    x = cases.feature(FEATURE).requires_grad_()
    with use_backend("reference"):
        tapped = tap(x)
    with use_backend("cuda"), pytest.raises(RuntimeError, match="tap_backward on cpu"):
        tapped.map.sum().backward()


def test_compiled_code_follows_the_forced_backend(monkeypatch):
    reference, calls = importlib.import_module("abckd_kernels.ops.tap.reference"), []
    forward = reference.forward
    monkeypatch.setattr(reference, "forward", lambda *args: calls.append(1) or forward(*args))
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: abc_loss([x], [x.cos()]), fullgraph=True, backend="aot_eager")
    x = torch.rand(2, 3, 4)
    with use_backend("reference"):
        compiled(x)
        assert calls
    calls.clear()
    compiled(x)
    assert bool(calls) == (backends.choose("tap_forward", "cpu") == "reference")


NO_COMPILER = """
import sys
sys.modules["abckd_kernels._C"] = None
import torch, abckd_kernels
from abckd_kernels import ABCLoss, backends, tap
from abckd_kernels.losses import HintLoss
assert backends.extension() is None
torch.manual_seed(0)
x, t = torch.randn(2, 3, 6, 4), torch.randn(2, 5, 6, 4)
abc, hint = ABCLoss([3], [5], dim=4), HintLoss(3, 5)
def step(x):
    tapped = tap(x)
    return abc([tapped.feature], [t]) + hint(tapped.feature, t) + tapped.map.square().mean()
results = []
for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
    leaf = x.clone().requires_grad_()
    loss = function(leaf)
    results.append([loss, *torch.autograd.grad(loss, [leaf, *abc.parameters(), *hint.parameters()])])
for one, other in zip(*results, strict=True):
    torch.testing.assert_close(one, other)
"""


def test_without_the_extension_ops_compile_and_differentiate():
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", NO_COMPILER], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
