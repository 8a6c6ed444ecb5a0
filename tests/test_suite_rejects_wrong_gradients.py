"""The assertion that the gradient tests rest on refuses the two classic wrong gradients, and some less classic ones."""

import cases
import pytest
import torch

from abckd_kernels import abc_loss
from abckd_verify.exact import accuracy, oracle

SCALE = 2**10


def without_last_element(grad):
    return torch.cat([grad.flatten()[:-1], grad.new_zeros(1)]).view_as(grad)


WRONG = {
    "zero": torch.zeros_like,
    "sign": torch.neg,
    "factor": lambda grad: 2 * grad,
    "one_percent": lambda grad: 1.01 * grad,
    "batch_mean_left_out": lambda grad: grad * grad.shape[0],
    "last_element_left_out": without_last_element,
    "not_written": torch.empty_like,
    "first_sample_everywhere": lambda grad: grad[:1].expand_as(grad),
    "none": lambda grad: None,
}


@pytest.fixture(params=cases.DTYPES, ids=cases.name_of)
def gradient(request):
    """Ours, the oracle's, and plain PyTorch's stand-in, of a small loss; scaled, as half precision needs."""
    students, teachers = cases.DOWN.features(request.param)
    (ours, _) = torch.autograd.grad(abc_loss(students, teachers) * SCALE, students)
    exact = oracle.abc_loss(*accuracy.all_float64(students, teachers)).student_grads[0] * SCALE
    return ours, exact, torch.from_numpy(exact).to(request.param)


def test_accepts_the_right_one(gradient):
    accuracy.assert_gradient(*gradient, "gradient", condition=10)


@pytest.mark.parametrize("spoil", WRONG.values(), ids=WRONG)
def test_rejects(spoil, gradient):
    ours, exact, plain = gradient
    with pytest.raises(AssertionError):
        accuracy.assert_gradient(spoil(ours), exact, plain, "gradient", condition=10)


def test_rejects_gradients_that_are_rounded_to_half_precision_twice():
    """Computed in bfloat16 and not only stored in it."""
    exact = cases.feature((2, 9), torch.float64).numpy()
    thirds = (torch.from_numpy(exact / 3).bfloat16() * 3).bfloat16()
    with pytest.raises(AssertionError):
        accuracy.assert_gradient(thirds, exact, thirds, "gradient")


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
def test_what_must_be_the_same_differs_by_no_bit_but_where_pytorch_computes(dtype):
    """One unit in the last place fails our kernels; torch's own may differ by it, and by no more than a few."""
    x = cases.feature((2, 9), dtype)
    eps = torch.finfo(dtype).eps
    near, far = x * (1 + eps), x + 20 * eps * x.abs().max()
    for backend in ("cpu", "reference"):
        accuracy.assert_same([x], [x.clone()], backend)
        with pytest.raises(AssertionError):
            accuracy.assert_same([far], [x], backend)
    accuracy.assert_same([near], [x], "reference")
    with pytest.raises(AssertionError):
        accuracy.assert_same([near], [x], "cpu")
    with pytest.raises(ValueError):
        accuracy.assert_same([x], [x, x], "cpu")
