"""correlation against NumPy in float64, on every backend, for both layouts of logits and every dtype."""

import cases
import numpy as np
import pytest
import torch

from abckd_kernels import backends, use_backend
from abckd_kernels.ops.correlation import correlation
from abckd_verify.exact import accuracy
from abckd_verify.ops.correlation import distance, plain, softmax

SHAPES = ((6, 5), (1, 4), (40, 1000), (70, 33), (3, 4, 5), (2, 5, 40), (2, 3, 4, 5), (40, 7, 2), (5, 1), (12, 2100))


@pytest.fixture(params=[x for x in cases.BACKENDS if backends.why_not("correlation_forward", x, "cpu") is None])
def backend(request):
    """Each backend that has this op, which none of the extension's kernels serve."""
    with use_backend(request.param):
        yield request.param


def logits(shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def exact(student, teacher, temperature=1.0, ignore=None):
    q, p = (
        softmax(np.moveaxis(accuracy.float64(x), 1, -1).reshape(-1, x.shape[1]) / temperature)
        for x in (student, teacher)
    )
    if ignore is not None:
        q, p = (x[~ignore.numpy().reshape(-1)] for x in (q, p))
    return distance(q, p, 1).mean() if len(q) else 0.0, distance(q, p, 0).mean() if len(q) else 0.0


def check(student, teacher, temperature=1.0, ignore=None):
    student = student.detach().requires_grad_()
    ours = correlation(student, teacher, temperature=temperature, ignore=ignore)
    digits = 1e-11 if student.dtype == torch.float64 else 3e-6
    np.testing.assert_allclose(
        [x.item() for x in ours], exact(student, teacher, temperature, ignore), rtol=digits, atol=digits
    )
    assert all(x.dtype == (torch.float64 if student.dtype == torch.float64 else torch.float32) for x in ours)
    wide = student.detach().double().requires_grad_()
    expected = plain(wide, teacher.double(), ignore, temperature)
    for mine, right in zip(ours, expected, strict=True):
        (grad,) = torch.autograd.grad(mine, student, retain_graph=True)
        (wanted,) = torch.autograd.grad(right, wide, retain_graph=True)
        assert grad.dtype == student.dtype and grad.shape == student.shape
        scale = wanted.abs().max().item()
        eps = torch.finfo(student.dtype).eps
        torch.testing.assert_close(grad.double(), wanted, rtol=2 * eps, atol=max(400 * digits, eps) * scale + 1e-14)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if 1 not in shape], ids=str)
def test_against_numpy(backend, shape, dtype):
    check(logits(shape, dtype), logits(shape, dtype, 1), temperature=1.5)


@pytest.mark.parametrize("shape", [(40, 6), (3, 4, 20), (12, 700)], ids=str)
def test_ignored_rows(backend, shape):
    student, teacher = logits(shape), logits(shape, seed=1)
    ignore = torch.arange(student[:, 0].numel()).view(student[:, 0].shape) % 3 == 1
    expected = correlation(student, teacher, ignore=ignore)
    check(student, teacher, ignore=ignore)
    for x in (student, teacher):
        x.movedim(1, -1)[ignore] = float("nan")
    student.requires_grad_()
    value = correlation(student, teacher, ignore=ignore)
    torch.testing.assert_close(tuple(value), tuple(expected))
    (grad,) = torch.autograd.grad(sum(value), student)
    assert grad.isfinite().all() and not grad.movedim(1, -1)[ignore].any()


@pytest.mark.parametrize("shape", [(0, 5), (3, 1), (2, 5, 0), (4, 5)], ids=str)
def test_nothing_to_correlate(backend, shape):
    """No rows, one class, constant logits, and rows none of which count."""
    student = torch.zeros(shape, requires_grad=True)
    for ignore in (None, torch.ones(student[:, 0].shape, dtype=torch.bool)):
        value = correlation(student, torch.zeros(shape), ignore=ignore)
        assert [x.item() for x in value] == [0, 0]
        assert not torch.autograd.grad(sum(value), student)[0].any()


def test_where_one_is_constant_the_distance_is_one(backend):
    student = torch.zeros(6, 5, requires_grad=True)
    value = correlation(student, logits((6, 5)))
    assert [x.item() for x in value] == [1, 1]
    assert not torch.autograd.grad(sum(value), student)[0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=cases.name_of)
def test_near_equality_no_digits_are_lost(backend, dtype):
    teacher = logits((60, 50), dtype)
    student = teacher + 0.001 * logits((60, 50), dtype, 1)
    value, expected = correlation(student, teacher), correlation(student.double(), teacher.double())
    for ours, right in zip(value, expected, strict=True):
        assert ours.item() == pytest.approx(right.item(), rel=1e-3)


@pytest.mark.parametrize("dim", [1, 2, -1])
def test_any_axis_holds_the_classes(backend, dim):
    student, teacher = logits((3, 4, 5)), logits((3, 4, 5), seed=1)
    moved = correlation(student.movedim(dim, 1), teacher.movedim(dim, 1))
    torch.testing.assert_close(tuple(correlation(student, teacher, dim=dim)), tuple(moved))


def test_dtypes_may_differ(backend):
    student, teacher = logits((6, 5)).requires_grad_(), logits((6, 5), torch.float64, 1)
    value = correlation(student, teacher)
    assert value.along_rows.dtype == torch.float64
    assert torch.autograd.grad(sum(value), student)[0].dtype == torch.float32


X = torch.zeros(4, 3)
WRONG = {
    "student": ((None, X), {}, TypeError),
    "teacher": ((X, X.int()), {}, TypeError),
    "teacher ": ((X, X[:2]), {}, ValueError),
    "dim": ((X, X), {"dim": 2}, ValueError),
    "temperature": ((X, X), {"temperature": 0}, ValueError),
    "ignore": ((X, X), {"ignore": X[:, 0]}, TypeError),
    "ignore ": ((X, X), {"ignore": X[:2, 0] > 0}, ValueError),
    "student ": ((X[:, :0], X[:, :0]), {}, ValueError),
}


@pytest.mark.parametrize("named", WRONG)
def test_wrong_arguments(named):
    arguments, options, error = WRONG[named]
    with pytest.raises(error, match=f"^{named.strip()}: expected"):
        correlation(*arguments, **options)
