"""How close is close enough: little worse than plain PyTorch in the same dtype, half gradients rounded once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from abckd_kernels import backends

TIMES_PLAIN = 3  # our error may be this often the error of plain PyTorch ...
ULPS_OF_SCALE = 4  # ... plus this many units in the last place of the largest value, times the condition of the problem


def float64(x: Tensor) -> np.ndarray:
    return x.detach().to(torch.float64).numpy()


def all_float64(*groups) -> list[list[np.ndarray]]:
    return [[float64(x) for x in group] for group in groups]


def assert_accurate(ours: Tensor, exact: np.ndarray, plain: Tensor, what: str, condition: float = 1) -> None:
    """Three-way: |ours - exact| against |plain - exact|, where plain PyTorch computed in the dtype of the features.

    condition: how much the problem enlarges rounding errors; 1 / temperature for what depends on a softmax.
    """
    assert tuple(ours.shape) == np.shape(exact), f"{what}: shape {tuple(ours.shape)}, expected {np.shape(exact)}"
    if not ours.numel():
        return
    error = np.abs(float64(ours) - exact).max()
    plain_error = np.nan_to_num(np.abs(float64(plain) - exact).max(), posinf=0)
    allowed = TIMES_PLAIN * plain_error + condition * ULPS_OF_SCALE * torch.finfo(ours.dtype).eps * np.abs(exact).max()
    assert error <= allowed, f"{what}: error {error:.3g}, allowed {allowed:.3g} (plain PyTorch: {plain_error:.3g})"


def assert_gradient(ours: Tensor | None, exact: np.ndarray, plain: Tensor, what: str, condition: float = 1) -> None:
    """As assert_accurate; in half precision each element must be the exact gradient, rounded once."""
    assert ours is not None, f"{what}: no gradient"
    if ours.dtype not in (torch.bfloat16, torch.float16):
        return assert_accurate(ours, exact, plain, what, condition)
    assert tuple(ours.shape) == exact.shape, f"{what}: shape {tuple(ours.shape)}, expected {exact.shape}"
    if not ours.numel():
        return
    error = np.abs(float64(ours) - exact)
    float32_noise = condition * ULPS_OF_SCALE * torch.finfo(torch.float32).eps * np.abs(exact).max()
    # Triton's interpreter truncates where it converts float32 to bfloat16.
    rounding = 1 if backends.TRITON_INTERPRET and ours.dtype == torch.bfloat16 else 0.5
    allowed = rounding * ulp(exact, ours.dtype) + float32_noise
    worst = (error - allowed).argmax()
    assert error.flat[worst] <= allowed.flat[worst], (
        f"{what}: {float64(ours).flat[worst]:.6g}, expected {exact.flat[worst]:.6g} within {allowed.flat[worst]:.2g}"
    )


def assert_same(ours: Sequence[Tensor], expected: Sequence[Tensor], backend: str) -> None:
    """What strides, threads or a dtype that holds the same numbers must not change: equal to the bit where our kernels
    compute both. The reference is PyTorch, which chooses among its own kernels by all of these and by the processor:
    there equal to a few units in the last place of the largest value."""
    for x, y in zip(ours, expected, strict=True):
        if backend == "reference":
            largest = y.detach().nan_to_num(posinf=0, neginf=0).abs().max().item() if y.numel() else 0
            eps = ULPS_OF_SCALE * torch.finfo(y.dtype).eps
            torch.testing.assert_close(x, y, rtol=eps, atol=eps * largest)
        else:
            assert torch.equal(x, y)


def ulp(x: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Distance between neighbouring numbers of `dtype` around each x, that of subnormal numbers included."""
    info = torch.finfo(dtype)
    exponents = np.floor(np.log2(np.maximum(np.abs(x), info.smallest_normal)))
    return np.exp2(exponents) * info.eps
