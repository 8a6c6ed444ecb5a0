"""dots against NumPy in float64, on every backend, for every layout and dtype."""

import cases
import numpy as np
import pytest
import torch

from abckd_kernels import backends
from abckd_kernels.ops.dots import dots
from abckd_verify.exact import accuracy
from abckd_verify.ops.dots import products as exact

SHAPES = ((2, 3, 7), (3, 4, 5, 6), (1, 2, 3, 35), (2, 1, 1, 1), (1, 3, 20, 64), (2, 2, 1, 513))


def exact_gradients(x, y, grad):
    xx, yy, xy, xe, ee, sx, se = (grad[..., i].reshape(*x.shape[:2], *[1] * (x.ndim - 2)) for i in range(7))
    of_x = 2 * xx * x + xy * y + xe * (y - 2 * x) - 2 * ee * (y - x) + sx - se
    return of_x, 2 * yy * y + xy * x + xe * x + 2 * ee * (y - x) + se


def check(x, y, rng):
    x, y = (a.detach().requires_grad_() for a in (x, y))
    ours = dots(x, y)
    expected = exact(accuracy.float64(x), accuracy.float64(y))
    assert ours.dtype == torch.float64
    np.testing.assert_allclose(accuracy.float64(ours), expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(ours.shape, generator=rng, dtype=torch.float64)
    expected = exact_gradients(accuracy.float64(x), accuracy.float64(y), upstream.numpy())
    for name, grad, wanted in zip("xy", torch.autograd.grad(ours, (x, y), upstream), expected, strict=True):
        accuracy.assert_gradient(grad, wanted, torch.from_numpy(wanted).to(x.dtype), name)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_numpy(backend, shape, dtype, rng):
    check(cases.feature(shape, dtype), cases.feature(shape, dtype, 1), rng)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("layout", cases.LAYOUTS, ids=lambda layout: layout.__name__)
def test_layouts(backend, layout, dtype, rng):
    x, y = (cases.feature((2, 5, 4, 6), dtype, seed) for seed in (0, 1))
    check(layout(x), y, rng)
    check(x, layout(y), rng)


@pytest.mark.big
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("bands", [64, 63])
def test_at_the_size_of_real_work(backend, bands, dtype, rng):
    """Gradients this large go past the caches."""
    check(*(cases.feature((8, 16, 200, bands), dtype, seed) for seed in (0, 1)), rng)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=cases.name_of)
def test_difference_of_nearly_equal_features(backend, dtype):
    x = cases.feature((2, 3, 40, 5), dtype)
    y = x * (1 + 2 * torch.finfo(dtype).eps)
    expected = exact(accuracy.float64(x), accuracy.float64(y))
    np.testing.assert_allclose(dots(x, y).numpy(), expected, rtol=1e-12)


def test_dtypes_may_differ(backend):
    x, y = cases.feature((2, 3, 4)).requires_grad_(), cases.feature((2, 3, 4), torch.bfloat16, 1)
    accuracy.assert_same([dots(x, y)], [dots(x, y.float())], backend)
    value = dots(y.detach().requires_grad_(), x)
    assert torch.autograd.grad(value.sum(), x)[0].dtype == torch.float32


def test_empty_batch(backend):
    x = torch.zeros(0, 3, 4, 5, requires_grad=True)
    dots(x, torch.zeros(0, 3, 4, 5)).sum().backward()
    assert x.grad.shape == x.shape


def test_gradcheck(backend):
    x, y = (cases.feature((2, 3, 4), torch.float64, seed).requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(dots, (x, y))


@pytest.mark.skipif(backends.TRITON_INTERPRET, reason="the interpreter needs real tensors")
@pytest.mark.parametrize("layout", cases.LAYOUTS, ids=lambda layout: layout.__name__)
def test_opcheck(layout):
    x, y = (layout(cases.feature((2, 3, 4, 5), seed=seed)).detach() for seed in (0, 1))
    for overload in ("default", "reference"):
        torch.library.opcheck(getattr(torch.ops.abckd.dots_forward, overload), (x, y))
        for needed in ([True, True], [True, False], [False, True]):
            torch.library.opcheck(
                getattr(torch.ops.abckd.dots_backward, overload), (torch.randn(2, 3, 7).double(), x, y, needed)
            )


def test_upstream_gradients_of_stride_zero(backend):
    x, y = cases.feature((2, 3, 4, 5)).requires_grad_(), cases.feature((2, 3, 4, 5), seed=1)
    value = dots(x, y)
    ones = torch.ones((), dtype=torch.float64).expand(value.shape)
    whole = torch.autograd.grad(value, x, ones.contiguous(), retain_graph=True)
    accuracy.assert_same(torch.autograd.grad(value, x, ones), whole, backend)


def test_second_derivatives_are_refused_rather_than_zero(backend):
    x, y = cases.feature((2, 3, 4)).requires_grad_(), cases.feature((2, 3, 4), seed=1)
    with pytest.raises(RuntimeError):
        (first,) = torch.autograd.grad(dots(x, y).square().sum(), x, create_graph=True)
        torch.autograd.grad(first.square().sum(), x)


WRONG = [
    (lambda: dots(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5)), ValueError, ["y", "(2, 3, 4)", "(2, 3, 5)"]),
    (lambda: dots(torch.zeros(2, 3), torch.zeros(2, 3)), ValueError, ["x", "(2, 3)"]),
    (lambda: dots(torch.zeros(2, 3, 4), [1.0]), TypeError, ["y", "list"]),
]


@pytest.mark.parametrize("call, error, words", WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_errors(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert all(word in str(caught.value) for word in words), str(caught.value)
