"""gram against NumPy in float64, on every backend, for every axis, layout and dtype."""

import accuracy
import cases
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abckd_kernels import backends, use_backend
from abckd_kernels.ops.gram import AXES, gram, size

# The number of columns decides about blocks and chunks, that of rows about tiles.
SHAPES = ((2, 3, 7), (3, 4, 5, 6), (1, 17, 3, 35), (2, 1, 1, 1), (5, 9, 2, 16), (2, 65, 3, 4), (2, 3, 66, 2))
SHIFTED = pytest.mark.parametrize("shifted", [False, True], ids=["", "shifted"])
axes = pytest.mark.parametrize("axis", AXES)


def rows(x: np.ndarray, axis: str, shifted: bool) -> np.ndarray:
    """(groups, rows, columns) of the definition."""
    if axis == "samples":
        x = x.reshape(1, len(x), -1)
    elif axis == "channels":
        x = x.reshape(*x.shape[:2], -1)
    else:
        x = np.moveaxis(x, 2, 1 if axis == "frames" else 0)
        x = x.reshape(*x.shape[:2], -1)
    if shifted:
        x = x.copy()
        x[:, 1:] -= x[:, :1]
    return x


def exact(x: np.ndarray, axis: str, shifted: bool) -> np.ndarray:
    z = rows(x, axis, shifted)
    return z @ z.transpose(0, 2, 1)


def exact_gradient(x: np.ndarray, axis: str, shifted: bool, grad: np.ndarray) -> np.ndarray:
    z = (grad + grad.transpose(0, 2, 1)) @ rows(x, axis, shifted)
    if shifted:
        z[:, 0] -= z[:, 1:].sum(1)
    order = [x.shape[1], *x.shape[2:]]
    if axis in ("samples", "channels"):
        return z.reshape(x.shape)
    order = [z.shape[0], z.shape[1], x.shape[1], *x.shape[3:]]
    return np.moveaxis(z.reshape(order), 1 if axis == "frames" else 0, 2)


def plain(x, axis, shifted):
    """In PyTorch, as a user would write it."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    x = {"samples": lambda: x[None], "channels": lambda: x, "frames": lambda: x.movedim(2, 1)}.get(
        axis, lambda: x.movedim(2, 0)
    )()
    z = x.reshape(*x.shape[:2], -1)
    if shifted:
        z = torch.cat([z[:, :1], z[:, 1:] - z[:, :1]], 1)
    return z @ z.mT


def check(x, axis, shifted, rng):
    x = x.detach().requires_grad_()
    ours, theirs = gram(x, axis, shifted=shifted), plain(x, axis, shifted)
    assert ours.dtype == torch.float64
    # In float64 NumPy's product is PyTorch's, with the same errors: only a wider one measures both.
    values = accuracy.float64(x).astype(np.longdouble if x.dtype == torch.float64 else np.float64)
    # Matrices are float64 but of products in float32: their accuracy is that.
    narrow = ours.to(torch.promote_types(x.dtype, torch.float32))
    accuracy.assert_accurate(narrow, exact(values, axis, shifted), theirs, "matrix")
    upstream = torch.randn(ours.shape, generator=rng, dtype=torch.float64)
    (grad,) = torch.autograd.grad(ours, x, upstream)
    (plain_grad,) = torch.autograd.grad(theirs, x, upstream.to(theirs.dtype))
    expected = exact_gradient(values, axis, shifted, accuracy.float64(upstream))
    accuracy.assert_gradient(grad, expected, plain_grad, "gradient", condition=4)


@SHIFTED
@axes
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_numpy(backend, shape, axis, shifted, dtype, rng):
    check(cases.feature(shape, dtype), axis, shifted, rng)


@SHIFTED
@axes
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("layout", cases.LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("shape", [(2, 6, 9), (2, 19, 4, 6)], ids=str)
def test_layouts(backend, shape, layout, axis, shifted, dtype, rng):
    check(layout(cases.feature(shape, dtype)), axis, shifted, rng)


@SHIFTED
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (4, 700), (9, 2100), (65, 40)], ids=str)
def test_vectors(backend, shape, shifted, rng):
    check(cases.feature(shape), "samples", shifted, rng)


@SHIFTED
@pytest.mark.big
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("count", [1, 8, 70, 300])
def test_many_columns_in_many_chunks(backend, count, dtype, shifted, rng):
    check(cases.feature((count, 5000), dtype), "samples", shifted, rng)


@axes
@pytest.mark.big
@pytest.mark.parametrize("layout", [cases.contiguous, cases.channels_last], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=cases.name_of)
def test_at_the_size_of_real_work(backend, dtype, layout, axis, rng):
    """Gradients this large go past the caches."""
    check(layout(cases.feature((8, 16, 200, 64), dtype)), axis, True, rng)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=cases.name_of)
def test_sums_do_not_lose_digits(backend, dtype):
    """Numbers around 3: of 400 000 columns float32 would keep four or five digits of the sum."""
    x = cases.feature((2, 400_000 if backend != "triton" else 20_000), dtype) / 4 + 3
    expected = exact(accuracy.float64(x), "samples", False)
    np.testing.assert_allclose(gram(x).numpy(), expected, rtol=2e-7)


def test_where_numpy_and_pytorch_make_the_same_error(backend):
    """So that the error of plain PyTorch seems to be none, and ours, an eighth of it, too large."""
    x = cases.feature((4, 17, 2, 10), torch.float64, 10)
    check(x, "samples_per_frame", False, torch.Generator().manual_seed(10))


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, n) for n in (9, 20, 40, 40)]),
    axis=st.sampled_from(AXES),
    shifted=st.booleans(),
    last=st.booleans(),
    dtype=st.sampled_from(cases.DTYPES),
    seed=st.integers(0, 100),
)
def test_any_shape(shape, axis, shifted, last, dtype, seed):
    x = cases.feature(shape, dtype, seed)
    for name in cases.BACKENDS:
        with use_backend(name):
            check(cases.channels_last(x) if last else x, axis, shifted, torch.Generator().manual_seed(seed))


@axes
def test_results_keep_the_layout_of_the_feature(backend, axis):
    for layout in (cases.contiguous, cases.channels_last):
        x = layout(cases.feature((2, 8, 4, 6))).requires_grad_()
        kept = layout is cases.contiguous or axis != "channels"
        (grad,) = torch.autograd.grad(gram(x, axis).sum(), x)
        assert (grad.stride() == x.stride()) == kept


@SHIFTED
@axes
def test_empty_batch(backend, axis, shifted):
    x = torch.zeros(0, 3, 4, 5, requires_grad=True)
    g = gram(x, axis, shifted=shifted)
    g.sum().backward()
    assert g.shape == size(x, axis) and g.numel() == 0 and x.grad.shape == x.shape


@SHIFTED
@axes
def test_gradcheck(backend, axis, shifted):
    shape = (2, 3, 4, 2)
    x = cases.feature(shape, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: gram(x, axis, shifted=shifted), x)


@pytest.mark.skipif(backends.TRITON_INTERPRET, reason="the interpreter needs real tensors")
@SHIFTED
@axes
@pytest.mark.parametrize("layout", cases.LAYOUTS, ids=lambda layout: layout.__name__)
def test_opcheck(layout, axis, shifted):
    for overload in ("default", "reference"):
        for shape in ((2, 3, 4), (2, 3, 4, 5), (2, 3, 4, 1)):
            x = layout(cases.feature(shape)).detach()
            grad = torch.randn(size(x, axis), dtype=torch.float64)
            torch.library.opcheck(getattr(torch.ops.abckd.gram_forward, overload), (x, axis, shifted))
            torch.library.opcheck(getattr(torch.ops.abckd.gram_backward, overload), (grad, x, axis, shifted))


@SHIFTED
def test_results_do_not_depend_on_threads_or_repetition(backend, shifted):
    x = cases.feature((5, 3, 60, 40)).requires_grad_()
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            g = gram(x, shifted=shifted)
            results.append((g, *torch.autograd.grad(g.square().sum(), x)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        accuracy.assert_same(other, results[0], backend)


@axes
def test_upstream_gradients_of_stride_zero(backend, axis):
    x = cases.feature((2, 3, 4, 5)).requires_grad_()
    g = gram(x, axis)
    ones = torch.ones((), dtype=torch.float64).expand(g.shape)
    whole = torch.autograd.grad(g, x, ones.contiguous(), retain_graph=True)
    accuracy.assert_same(torch.autograd.grad(g, x, ones), whole, backend)


def test_what_is_not_finite_stays_in_its_row(backend):
    x = cases.feature((3, 4, 5, 20))
    x[1, 2, 3, 4] = torch.nan
    finite = gram(x)[0].isfinite()
    assert not finite[1].any() and not finite[:, 1].any() and finite[[0, 0, 2, 2], [0, 2, 0, 2]].all()


def test_tiny_upstream_gradients(backend):
    """A mean over everything divides by millions: in half precision the factors would be zero."""
    x = (cases.feature((3, 40), torch.float16) * 100).requires_grad_()
    (grad,) = torch.autograd.grad(gram(x) * 1e-9, x, torch.ones(1, 3, 3).double())
    expected = exact_gradient(accuracy.float64(x), "samples", False, np.full((1, 3, 3), 1e-9))
    np.testing.assert_allclose(grad.numpy(), expected, atol=2**-25)
    assert grad.abs().max() > 0


def test_second_derivatives_are_refused_rather_than_zero(backend):
    x = cases.feature((2, 3, 4)).requires_grad_()
    with pytest.raises(RuntimeError):
        (first,) = torch.autograd.grad(gram(x).square().sum(), x, create_graph=True)
        torch.autograd.grad(first.square().sum(), x)


WRONG = [
    (lambda: gram(torch.zeros(2, 3, 4), "rows"), ValueError, ["axis", "samples_per_frame", "'rows'"]),
    (lambda: gram([1.0]), TypeError, ["x", "list"]),
    (lambda: gram(torch.zeros(2, 3, 4).int()), TypeError, ["x", "int32"]),
    (lambda: gram(torch.zeros(2, 3), "frames"), ValueError, ["x", "(2, 3)"]),
    (lambda: gram(torch.zeros(2, 0)), ValueError, ["x", "zero"]),
]


@pytest.mark.parametrize("call, error, words", WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_errors(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert all(word in str(caught.value) for word in words), str(caught.value)
