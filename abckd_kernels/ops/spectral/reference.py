"""spectral in plain PyTorch: the definition."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..shapes import accumulation_dtype, frame_mask
from . import spectra


class _Compressed(NamedTuple):
    power: Tensor  # squared magnitude, eps included
    magnitude: Tensor  # m^c
    factor: Tensor  # m^(c-1)
    pair: Tensor  # z m^(c-1)


def forward(
    student: Tensor, teacher: Tensor, exponent: float, eps: float, lengths: Tensor | None, padded_length: int
) -> tuple[Tensor, Tensor]:
    mask = frame_mask(lengths, student.shape[-2], padded_length)
    s, t = (_compressed(_valid(x, mask), exponent, eps) for x in (student, teacher))
    count = _valid_bins(s.power, mask)
    errors = s.magnitude - t.magnitude, s.pair - t.pair
    of_magnitude, of_pair = (error.square().flatten(1).sum(1) / count for error in errors)
    return of_magnitude, of_pair


def backward(
    magnitude_grads: Tensor,
    complex_grads: Tensor,
    student: Tensor,
    teacher: Tensor,
    exponent: float,
    eps: float,
    lengths: Tensor | None,
    padded_length: int,
) -> Tensor:
    mask = frame_mask(lengths, student.shape[-2], padded_length)
    x = _valid(student, mask)
    s, t = _compressed(x, exponent, eps), _compressed(_valid(teacher, mask), exponent, eps)
    count = _valid_bins(s.power, mask)
    by_magnitude, by_pair = (
        (2 * grads.to(x.dtype) / count).reshape(-1, *[1] * (x.dim() - 2)) for grads in (magnitude_grads, complex_grads)
    )
    error = s.pair - t.pair
    along = by_magnitude * exponent * (s.magnitude - t.magnitude) * s.magnitude / s.power
    along = along + by_pair * (exponent - 1) * (x * error).sum(-1) * s.factor / s.power
    grad = along.unsqueeze(-1) * x + (by_pair * s.factor).unsqueeze(-1) * error
    if student.dtype == torch.float16:
        largest = torch.finfo(torch.float16).max
        grad = grad.clamp(-largest, largest)
    return spectra.empty_like(student).copy_(grad)


def _valid(x: Tensor, mask: Tensor | None) -> Tensor:
    """`x` in the dtype of sums, zero in frames that are not valid: where both spectra are, there is no error."""
    x = x.to(accumulation_dtype(x.dtype))
    if mask is None:
        return x
    return x.masked_fill(~mask.reshape(x.shape[0], *[1] * (x.dim() - 3), x.shape[-2], 1), 0)


def _compressed(x: Tensor, exponent: float, eps: float) -> _Compressed:
    power = x.square().sum(-1) + eps
    factor = power ** ((exponent - 1) / 2)
    return _Compressed(power, power ** (exponent / 2), factor, x * factor.unsqueeze(-1))


def _valid_bins(bins: Tensor, mask: Tensor | None) -> Tensor | int:
    """Bins that a mean is taken over: a number, or (B,) where lengths differ; at least one."""
    bands = bins.shape[1:-1].numel()
    return bands * bins.shape[-1] if mask is None else (mask.sum(1) * bands).clamp(min=1)
