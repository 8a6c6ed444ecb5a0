"""gram in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shapes import accumulation_dtype, empty_like, matrix_dtype
from . import laid_out

COLUMNS = 512  # whose products are summed in float32


def forward(x: Tensor, axis: str, shifted: bool) -> Tensor:
    z = _shifted(_rows(x, axis).to(accumulation_dtype(x.dtype)), shifted)
    total = z.new_zeros((z.shape[0], z.shape[1], z.shape[1]), dtype=matrix_dtype(x.device))
    for part in z.split(COLUMNS, 2):
        total += part @ part.mT
    return total


def backward(grad: Tensor, x: Tensor, axis: str, shifted: bool) -> Tensor:
    result = empty_like(laid_out(x, axis))
    z = _shifted(_rows(x, axis).to(accumulation_dtype(x.dtype)), shifted)
    _rows(result, axis).copy_((row_factors(grad, shifted).to(z.dtype) @ z).view_as(_rows(result, axis)))
    return result


def row_factors(grad: Tensor, shifted: bool) -> Tensor:
    """M with gx = M z, (groups, rows, rows) float64."""
    grad = grad.to(matrix_dtype(grad.device))
    matrix = grad + grad.mT
    if shifted and matrix.shape[1]:
        others = matrix[:, 1:].sum(1, keepdim=True)
        matrix = torch.cat([matrix[:, :1] - others, matrix[:, 1:]], 1)
    return matrix


def _rows(x: Tensor, axis: str) -> Tensor:
    """A view of `x` with groups, rows, and what the columns are made of."""
    if axis == "samples":
        return x[None]
    if axis == "channels":
        return x
    return x.movedim(2, 1) if axis == "frames" else x.movedim(2, 0)


def _shifted(rows: Tensor, shifted: bool) -> Tensor:
    """(groups, rows, columns)."""
    z = rows.flatten(2) if rows.dim() > 3 else rows
    return torch.cat([z[:, :1], z[:, 1:] - z[:, :1]], 1) if shifted else z
