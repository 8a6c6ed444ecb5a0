"""The suite refuses losses that are wrong in the classic ways: each fault fails the test that is there for it."""

import pytest
import suite
import torch
from suite import Loss

from abckd_kernels.losses.common.features import Padding

LOSSES = []


def right(student, teacher, lengths=None, padded_length=None, weights=None):
    """Mean squared error over valid frames."""
    if isinstance(student, (list, tuple)):
        each = torch.stack([right(s, t, lengths, padded_length) for s, t in zip(student, teacher, strict=True)])
        return each.mean() if weights is None else (each * torch.tensor(weights).to(each)).sum()
    padding = Padding(None if lengths is None else torch.as_tensor(lengths), padded_length or student.shape[2])
    wide = torch.float64 if student.dtype == torch.float64 else torch.float32
    s, t = (padding.zeroed(x).to(wide) for x in (student, teacher.detach()))
    with torch.autocast("cpu", enabled=False):
        return ((s - t).square().flatten(1).sum(1) / (s.shape[1] * padding.positions(s))).sum() / max(len(s), 1)


class _Wrong(torch.autograd.Function):
    """The identity, whose gradient is changed."""

    @staticmethod
    def forward(ctx, x, change):
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return ctx.change(grad), None


def with_gradient(change):
    return lambda s, t, **options: right(_Wrong.apply(s, change), t, **options)


def half(s, t, **_):
    """Computed in the features' dtype."""
    return (s - t.detach()).square().mean().to(torch.float64 if s.dtype == torch.float64 else torch.float32)


def one_element(grad):
    grad = grad.clone()
    grad.view(-1)[7] *= 1.01
    return grad


def hundredfold_when_silent(s, t, **options):
    silent = (s.flatten(1).norm(dim=1) == 0).any() if len(s) else torch.tensor(False)
    return right(_Wrong.apply(s, lambda grad: grad * (1 + 300 * silent)), t, **options)


def asks_for_a_value(s, t, **options):
    return right(s, t, **options) * float(bool(s.sum() > -1e30))


def graph_break(s, t, **options):
    torch._dynamo.graph_break()
    return right(s, t, **options)


def spoils_its_input(s, t, **options):
    t.mul_(2)
    return right(s, t, **options)


def all_frames(s, t, lengths=None, **options):
    return right(s, t, **options)


def not_detached(s, t, **_):
    return (s - t).square().mean()


def zero_over_zero(s, t, **options):
    return right(s / s.flatten(1).norm(dim=1).view(-1, *[1] * (s.dim() - 1)), t, **options)


def negative(s, t, **options):
    return right(s, t, **options) - 3


def tiny(s, t, **options):
    return right(s, t, **options) * 2.0**-40


def exact(student, teacher):
    return ((student - teacher) ** 2).mean()


HALF = (torch.float16,)
FAULTS = [
    (with_gradient(torch.zeros_like), "test_gradient", ()),
    (with_gradient(torch.neg), "test_gradient", ()),
    (with_gradient(lambda grad: grad * 1.001), "test_gradient", ()),
    (lambda s, t, **_: right(s, t) * 1.0001, "test_definition", ()),
    (negative, "test_never_negative", ()),
    (lambda s, t, **_: right(s, t) + 1, "test_zero_at_equality", ()),
    (lambda s, t, **_: right(s, t.roll(1, 0)), "test_samples_are_independent", ()),
    (lambda s, t, **_: right(s, t) * (1 + torch.arange(len(s)).sum()), "test_samples_are_independent", ()),
    (zero_over_zero, "test_silence", ("student", HALF[0])),
    (hundredfold_when_silent, "test_silence", ("student", HALF[0])),
    (lambda s, t, **_: right(s, t) / (s.shape[0] * s.shape[2] - 1), "test_one_sample_and_one_frame", HALF),
    (lambda s, t, **_: (s - t).square().mean(), "test_empty_batch", ()),
    (not_detached, "test_teacher_is_detached_and_inputs_stay", ()),
    (spoils_its_input, "test_teacher_is_detached_and_inputs_stay", ()),
    (asks_for_a_value, "test_compiles_in_one_graph", (True,)),
    (graph_break, "test_compiles_in_one_graph", (False,)),
    (half, "test_narrow_dtypes_compute_in_float32", (HALF[0], False)),
    (tiny, "test_half_gradients_of_training_size", ()),
    (with_gradient(torch.zeros_like), "test_training_with_autocast_and_grad_scaler", ()),
    (all_frames, "test_garbage_in_padded_frames", HALF),
    (all_frames, "test_lengths_are_cropping", ()),
    (all_frames, "test_each_sample_counts_its_own_frames", ()),
]


def row(function, **fields):
    return Loss("squared error", function, exact, teacher=(3, 6, 5), invariant="batch", **fields)


def run(function, test, given):
    """The suite's test, of the loss `function`."""
    names = {
        "test_silence": ("who", "dtype"),
        "test_narrow_dtypes_compute_in_float32": ("dtype", "autocast"),
        "test_compiles_in_one_graph": ("first_of_its_kind",),
    }
    names = names.get(test, ("dtype",))
    getattr(suite, test)(row(function), **dict(zip(names, given, strict=False)))


@pytest.mark.parametrize("test, given", dict.fromkeys(fault[1:] for fault in FAULTS), ids=str)
def test_accepts_a_right_loss(test, given):
    run(right, test, given)


@pytest.mark.parametrize("function, test, given", FAULTS, ids=[f"{n}-{fault[1]}" for n, fault in enumerate(FAULTS)])
def test_rejects(function, test, given):
    with pytest.raises((AssertionError, RuntimeError, ZeroDivisionError)):
        run(function, test, given)


@pytest.mark.parametrize("axes", [1, 2])  # 54 elements, each by itself, and 270, along random directions
def test_rejects_a_gradient_with_one_wrong_element(axes):
    suite.test_gradient(row(right, spatial=(axes,)))
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        suite.test_gradient(row(with_gradient(one_element), spatial=(axes,)))
