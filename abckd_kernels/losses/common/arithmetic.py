"""Arithmetic that stays finite, gradients included: what is silent gives zero, not a division by a tiny number."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops.shapes import accumulation_dtype, matrix_dtype

SILENT = 1e-12  # norms up to this one are silence


def small(x: Tensor) -> Tensor:
    """Float64 where the device has it."""
    return x.to(matrix_dtype(x.device))


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or float64 if it is that."""
    return x.to(accumulation_dtype(x.dtype))


def root(x: Tensor) -> Tensor:
    """sqrt(x) where x is positive; zero, with zero gradient, where it is not."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1).sqrt(), 0)


def inverse(norm: Tensor, eps: float = 0.0) -> Tensor:
    """1 / (norm + eps); zero, with zero gradient, where the norm is silence."""
    silent = norm <= SILENT
    return torch.where(silent, 0, 1 / torch.where(silent, 1, norm + eps))


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """x / ||x|| along `dim`; zero, with zero gradient, where x is silent."""
    return x * inverse(root(x.square().sum(dim, keepdim=True)))
