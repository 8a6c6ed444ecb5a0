"""dots in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shapes import matrix_dtype
from . import factors


def forward(x: Tensor, y: Tensor) -> Tensor:
    x, e = _rows(x, y)
    y = x + e
    products = (x * x, y * y, x * y, x * e, e * e, x, e)
    return torch.stack([values.sum(2) for values in products], -1)


def backward(grad_products: Tensor, x: Tensor, y: Tensor, needed: list[bool]) -> tuple[Tensor, ...]:
    rows, e = _rows(x, y)

    def combined(f: Tensor) -> Tensor:
        f = f.to(rows.dtype)[:, :, None]
        return (rows * f[..., 0] + e * f[..., 1] + f[..., 2]).view(x.shape).to(x.dtype).contiguous()

    return tuple(
        combined(f) if is_needed else x.new_empty(0)
        for f, is_needed in zip(factors(grad_products), needed, strict=True)
    )


def _rows(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """x and y - x, a row per channel."""
    x, y = (a.to(matrix_dtype(a.device)).flatten(2) for a in (x, y))
    return x, y - x
