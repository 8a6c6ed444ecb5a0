"""What follows from an op's two schemas: both ways of differentiating it agree, and refuse what there is not."""

import importlib
import threading
import time

import cases
import pytest
import torch

from abckd_kernels import backends, use_backend
from abckd_kernels.ops import contract
from abckd_kernels.ops.contract import connect_refusal

LENGTHS = [6, 2]


def features(*seeds, shape=(2, 3, 6, 4)):
    return [cases.feature(shape, torch.float64, seed) for seed in seeds]


def tap_arguments():
    return features(0, 1), 2, True, torch.tensor(LENGTHS), 6


def compress_arguments():
    students, teachers = ([x.square().mean(1) for x in features(*seeds)] for seeds in ((0, 1), (2, 3, 4)))
    scores = torch.randn(2, 2, 3, dtype=torch.float64)
    return students, teachers, scores, None, [3, 4], False, 0.1, torch.tensor(LENGTHS), 6


def pointwise_arguments():
    student, teacher, third = features(0, 1, 2)
    return student, teacher, third, None, "heteroscedastic", 1e-6, torch.tensor(LENGTHS), 6


def project_arguments():
    student, *teachers = features(0, 1, 2)
    attention = torch.rand(2, 2, dtype=torch.float64)
    weight, bias = torch.randn(3, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    return student, weight, teachers, bias, attention, torch.tensor(LENGTHS), 6


def spectral_arguments():
    return *features(0, 1, shape=(2, 5, 6, 2)), 0.3, 1e-12, torch.tensor(LENGTHS), 6


ARGUMENTS = {
    "tap": tap_arguments,
    "compress": compress_arguments,
    "correlation": lambda: (*features(0, 1, shape=(6, 5, 1)), None, torch.tensor(1.5, dtype=torch.float64)),
    "divergence": lambda: (*features(0, 1, shape=(6, 5, 1)), None, 2, 0.5, 4.0, None),
    "dots": lambda: features(0, 1),
    "gram": lambda: (*features(0), "frames", False),
    "pointwise": pointwise_arguments,
    "project": project_arguments,
    "pyramid": lambda: (*features(0, 1), [4, 2, 1], torch.tensor(LENGTHS), 6),
    "spectral": spectral_arguments,
}
each_op = pytest.mark.parametrize("name", contract.CONTRACTS)
WAYS = ["python"] + ["extension"] * (backends.extension() is not None)
each_way = pytest.mark.parametrize("way", WAYS)


def op_of(name, way):
    made = contract.CONTRACTS[name]
    return getattr(torch.ops.abckd, name).default if way == "extension" else contract.composite(made)


def differentiable(name):
    """The op's arguments; those that have gradients are leaves. And the leaves."""
    made, leaves = contract.CONTRACTS[name], []
    torch.manual_seed(0)
    arguments = list(ARGUMENTS[name]())
    for index, argument in enumerate(made.arguments):
        if argument in made.differentiated:
            value = arguments[index]
            fresh = [x.detach().requires_grad_() for x in (value if isinstance(value, list) else [value])]
            arguments[index] = fresh if isinstance(value, list) else fresh[0]
            leaves += fresh
    return arguments, leaves


def after_a_layer(name):
    """As `differentiable`, with something between the leaves and the op."""
    arguments, leaves = differentiable(name)
    after = {id(x): x * 1.5 for x in leaves}
    arguments = [
        [after.get(id(x), x) for x in value] if isinstance(value, list) else after.get(id(value), value)
        for value in arguments
    ]
    return arguments, leaves


def flat(results):
    items = results if isinstance(results, list | tuple) else [results]
    return [x for item in items for x in (item if isinstance(item, list | tuple) else [item])]


def total(results):
    """Weights that no two values share, so that a gradient which reaches another place shows."""
    return sum((x.double() * torch.linspace(1, 2, x.numel()).view(x.shape)).sum() for x in flat(results))


def test_every_op_has_arguments():
    assert set(ARGUMENTS) == set(contract.CONTRACTS)


@each_op
def test_both_ways_agree_to_the_bit(name, backend):
    if reason := backends.why_not(f"{name}_forward", backends.forced(), "cpu"):
        pytest.skip(reason)
    results = []
    for way in WAYS:
        arguments, leaves = after_a_layer(name)
        values = op_of(name, way)(*arguments)
        results.append([*flat(values), *torch.autograd.grad(total(values), leaves)])
    assert all(map(torch.equal, results[0], results[-1]))
    assert all(x.abs().max() > 0 for x in results[0])


@each_way
@each_op
def test_only_what_needs_a_gradient_gets_one(name, way):
    for wanted in range(len(differentiable(name)[1])):
        arguments, leaves = differentiable(name)
        expected = torch.autograd.grad(total(op_of(name, way)(*arguments)), leaves)[wanted]
        for index, leaf in enumerate(leaves):
            leaf.requires_grad_(index == wanted)
        total(op_of(name, way)(*arguments)).backward()
        assert [leaf.grad is not None for leaf in leaves] == [index == wanted for index in range(len(leaves))]
        torch.testing.assert_close(leaves[wanted].grad, expected)


@each_way
@each_op
def test_a_result_without_a_gradient(name, way):
    """One result alone reaches the loss; the others' gradients are zero."""
    for index, _ in enumerate(flat(op_of(name, way)(*ARGUMENTS[name]()))):
        arguments, leaves = differentiable(name)
        results = flat(op_of(name, way)(*arguments))
        others = sum((x * 0).sum() for k, x in enumerate(results) if k != index)
        (alone, together) = (
            torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
            for loss in (total(results[index]), total(results[index]) + others)
        )
        for one, other in zip(alone, together, strict=True):
            one = torch.zeros_like(other) if one is None and other is not None else one
            if one is not None:
                torch.testing.assert_close(one, other)


@each_way
@each_op
def test_second_derivatives_are_refused(name, way):
    """After a layer, by autograd.grad and by backward: gradient penalties, Hessian-vector products."""
    for differentiate in (
        lambda penalty, leaves: torch.autograd.grad(penalty, leaves),
        lambda penalty, leaves: penalty.backward(),
    ):
        arguments, leaves = after_a_layer(name)
        values = op_of(name, way)(*arguments)
        first = torch.autograd.grad(total(values), leaves, create_graph=True)
        for gradient in first:
            with pytest.raises(RuntimeError, match="second derivatives"):
                differentiate(gradient.square().sum(), leaves)


@each_way
@each_op
def test_forward_mode_is_refused(name, way):
    arguments, leaves = differentiable(name)
    with torch.autograd.forward_ad.dual_level():
        duals = {id(x): torch.autograd.forward_ad.make_dual(x.detach(), torch.ones_like(x)) for x in leaves}
        arguments = [
            [duals.get(id(x), x) for x in value] if isinstance(value, list) else duals.get(id(value), value)
            for value in arguments
        ]
        with pytest.raises(RuntimeError, match="forward-mode"):
            op_of(name, way)(*arguments)


@each_way
@pytest.mark.parametrize("name", [name for name, made in contract.CONTRACTS.items() if "lengths" in made.arguments])
def test_lengths_changed_before_backward_are_an_error(name, way):
    arguments, leaves = differentiable(name)
    lengths = arguments[contract.CONTRACTS[name].arguments.index("lengths")]
    values = op_of(name, way)(*arguments)
    lengths.fill_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total(values).backward()


@each_way
@each_op
def test_nothing_is_recorded_where_nothing_asks(name, way):
    arguments, leaves = differentiable(name)
    expected = flat(op_of(name, way)(*arguments))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            results = flat(op_of(name, way)(*arguments))
        for result, other in zip(results, expected, strict=True):
            assert not result.requires_grad or any(result is leaf for leaf in leaves)
            torch.testing.assert_close(result.detach(), other.detach())


@each_op
def test_opcheck(name):
    if not WAYS[1:]:
        pytest.skip("the extension is not built")
    utilities = ("test_autograd_registration", "test_aot_dispatch_dynamic")
    torch.library.opcheck(op_of(name, "extension"), tuple(differentiable(name)[0]), test_utils=utilities)


OPTIONS = False, 0.1, None, 500
LONG = {  # each takes tens of milliseconds on one thread
    "tap": lambda: ([torch.ones(4, 64, 500, 128)], 2, True, None, 500),
    "compress": lambda: ([torch.ones(256, 500, 64)], [torch.ones(256, 500, 64)] * 9, None, None, [500, 64], *OPTIONS),
    "gram": lambda: (torch.ones(1, 512, 4096), "channels", False),
}


def ticks_during(name):
    """Does another thread of Python run in the middle of a call?"""
    arguments, moments, stop = LONG[name](), [], threading.Event()

    def tick():
        while not stop.is_set():
            moments.append(time.perf_counter())
            time.sleep(0.0005)

    thread, threads = threading.Thread(target=tick), torch.get_num_threads()
    torch.set_num_threads(1)
    thread.start()
    try:
        begin = time.perf_counter()
        op_of(name, "extension")(*arguments)
        end = time.perf_counter()
    finally:
        stop.set()
        thread.join()
        torch.set_num_threads(threads)
    margin = (end - begin) / 5  # Python's own part of a call is at its ends
    return any(begin + margin < moment < end - margin for moment in moments)


@pytest.mark.skipif("cpu" not in cases.BACKENDS, reason="of the extension's kernels")
@pytest.mark.parametrize("name", LONG)
def test_other_threads_run_while_a_kernel_does(name):
    # Where processors are busy the other thread may wait for one; where the call holds the GIL it never runs.
    assert any(ticks_during(name) for _ in range(10))


def test_the_refusal_of_private_functions_is_connected():
    x = torch.randn(3, requires_grad=True)

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.square().sum()

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return connect_refusal(2 * grad * x.detach(), x, grad)

    (first,) = torch.autograd.grad(Square.apply(x.tanh()), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(first.square().sum(), x)


def test_the_backend_of_a_composite_op_is_chosen_when_it_runs():
    calls, reference = [], importlib.import_module("abckd_kernels.ops.gram.reference")
    forward = reference.forward
    reference.forward = lambda *args: calls.append(1) or forward(*args)
    try:
        with use_backend("reference"):
            op_of("gram", WAYS[-1])(*ARGUMENTS["gram"]())
    finally:
        reference.forward = forward
    assert calls
