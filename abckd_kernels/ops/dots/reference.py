"""dots in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shapes import matrix_dtype


def forward(x: Tensor, y: Tensor) -> Tensor:
    x, e = _rows(x, y)
    y = x + e
    products = (x * x, y * y, x * y, x * e, e * e, x, e)
    return torch.stack([values.sum(2) for values in products], -1)


def backward(factors: Tensor, x: Tensor, y: Tensor) -> Tensor:
    rows, e = _rows(x, y)
    factors = factors.to(rows.dtype)[:, :, None]
    return (rows * factors[..., 0] + e * factors[..., 1] + factors[..., 2]).view(x.shape).to(x.dtype).contiguous()


def _rows(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """x and y - x, a row per channel."""
    x, y = (a.to(matrix_dtype(a.device)).flatten(2) for a in (x, y))
    return x, y - x
