"""pyramid against NumPy in float64, on every backend, for every layout and dtype."""

import cases
import numpy as np
import pytest
import torch

from abckd_kernels import backends, use_backend
from abckd_kernels.ops.pyramid import pyramid, reference
from abckd_verify.exact import accuracy
from abckd_verify.ops.pyramid import LEVELS, errors
from abckd_verify.ops.pyramid import plain_errors as plain

SHAPES = ((2, 3, 6, 5), (1, 4, 9), (3, 2, 40, 7), (2, 70, 5, 3), (2, 2, 1, 1), (1, 1, 33, 70), (2, 3, 4, 1))


@pytest.fixture(params=[x for x in cases.BACKENDS if backends.why_not("pyramid_forward", x, "cpu") is None])
def backend(request):
    """Each backend that has this op, which none of the extension's kernels serve."""
    with use_backend(request.param):
        yield request.param


def pair(shape, dtype=torch.float32):
    return cases.feature(shape, dtype, 0), cases.feature(shape, dtype, 1)


def exact(student, teacher, levels=LEVELS, valid=None):
    return errors(accuracy.float64(student), accuracy.float64(teacher), levels, valid)


def digits(dtype):
    return 1e-12 if dtype == torch.float64 else 2e-6


def check(student, teacher, levels=(4, 2, 1)):
    student = student.detach().requires_grad_()
    ours = pyramid(student, teacher, levels=levels)
    assert ours.dtype == (torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32)
    np.testing.assert_allclose(accuracy.float64(ours), exact(student, teacher, levels), rtol=digits(ours.dtype))
    upstream = torch.linspace(1, 2, len(student), dtype=ours.dtype)
    (grad,) = torch.autograd.grad(ours, student, upstream)
    wide = student.detach().double().requires_grad_()
    (right,) = torch.autograd.grad(plain(wide, teacher.double(), levels), wide, upstream.double())
    assert grad.dtype == student.dtype and grad.shape == student.shape
    info = torch.finfo(student.dtype)
    rounding = info.smallest_normal * info.eps / 2  # of numbers below the smallest normal one, which float16 has here
    atol = digits(ours.dtype) * right.abs().max().item() + rounding
    torch.testing.assert_close(grad.double(), right, rtol=info.eps, atol=atol)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_numpy(backend, shape, dtype):
    check(*pair(shape, dtype))


@pytest.mark.parametrize("levels", [(), (1,), (3, 7), (8, 4, 2, 1), (20, 1)], ids=str)
def test_levels(backend, levels):
    check(*pair((2, 3, 12, 5)), levels)


@pytest.mark.parametrize("layout", cases.LAYOUTS, ids=lambda layout: layout.__name__)
def test_layouts(backend, layout):
    student, teacher = pair((3, 4, 9, 5))
    check(layout(student), teacher)
    check(student, layout(teacher))


def test_several_blocks(backend, monkeypatch):
    monkeypatch.setattr(reference, "BLOCK", 100)
    check(*pair((3, 4, 9, 5)))
    check(*map(cases.channels_last, pair((3, 4, 9, 5))))


@pytest.mark.parametrize("padded_length", [9, 18])
def test_padding(backend, padded_length):
    """Each sample's grids lie over its own frames; what follows is not read, and gets no gradient."""
    student, teacher = pair((5, 4, 9, 5), torch.float64)
    valid = [9, 4, 1, 0, 5]
    lengths = torch.tensor(valid) * padded_length // 9
    for b, frames in enumerate(valid):
        student[b, :, frames:] = float("nan")
        teacher[b, :, frames:] = float("inf")
    student.requires_grad_()
    errors = pyramid(student, teacher, lengths=lengths, padded_length=padded_length)
    np.testing.assert_allclose(accuracy.float64(errors), exact(student, teacher, valid=valid), rtol=1e-12)
    (grad,) = torch.autograd.grad(errors.sum(), student)
    for b, frames in enumerate(valid):
        assert not grad[b, :, frames:].any()
        if frames:
            cut = student.detach()[b : b + 1, :, :frames].requires_grad_()
            (right,) = torch.autograd.grad(plain(cut, teacher[b : b + 1, :, :frames]), cut)
            torch.testing.assert_close(grad[b : b + 1, :, :frames], right)


def test_an_empty_batch(backend):
    student = torch.zeros(0, 3, 6, 5, requires_grad=True)
    errors = pyramid(student, torch.zeros(0, 3, 6, 5))
    assert errors.shape == (0,) and torch.autograd.grad(errors.sum(), student)[0].shape == student.shape


def test_dtypes_may_differ(backend):
    student, teacher = pair((2, 3, 6, 5))
    check(student.bfloat16(), teacher)
    check(student, teacher.double())


def test_grids_made_in_inference_mode_serve_training(backend):
    student, teacher = pair((2, 3, 11, 13))
    with torch.inference_mode():
        pyramid(student, teacher)
    check(student, teacher)


X = torch.zeros(2, 3, 6, 5)
WRONG = {
    "student": ((None, X), {}, TypeError),
    "teacher": ((X, X[:1]), {}, ValueError),
    "levels": ((X, X), {"levels": (0, 1)}, ValueError),
    "levels ": ((X, X), {"levels": 4}, ValueError),
    "lengths": ((X, X), {"lengths": torch.ones(3, dtype=torch.int64)}, ValueError),
    "padded_length": ((X, X), {"padded_length": 0}, ValueError),
}


@pytest.mark.parametrize("named", WRONG)
def test_wrong_arguments(named):
    arguments, options, error = WRONG[named]
    with pytest.raises(error, match=f"^{named.strip()}: expected"):
        pyramid(*arguments, **options)
