"""Spectra as tensors: complex or pairs (re, im), and the two memory orders that are read as they lie.

Ops take pairs (B, *channels, F, T, 2). In memory the bins of a sample lie as [channels][F][T], contiguous, or as
[channels][T][F], "bands last", the order in which torch.stft leaves its result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import shapes

COMPLEX_DTYPES = (torch.complex64, torch.complex128)


def check(x: Tensor, name: str) -> None:
    """Raise TypeError or ValueError, naming the argument, unless `x` is a spectrum that the ops can read."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a spectrum (B, F, T), got {type(x).__name__}")
    if x.dtype not in (*COMPLEX_DTYPES, *shapes.FEATURE_DTYPES):
        raise TypeError(
            f"{name}: expected complex64, complex128, or pairs in float32, float64, bfloat16 or float16, got {x.dtype}"
        )
    if x.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got layout {x.layout}")
    shape = bins_shape(x)
    if not x.is_complex() and x.shape[-1:] != (2,):
        raise ValueError(f"{name}: expected complex numbers, or pairs (..., F, T, 2), got shape {tuple(x.shape)}")
    if len(shape) not in (3, 4):
        raise ValueError(f"{name}: expected bins (B, F, T) or (B, C, F, T), got {tuple(shape)}")
    if 0 in shape[1:]:
        raise ValueError(f"{name}: channels, bands and frames must not be zero, got {tuple(shape)}")


def check_same(student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError unless both have the same bins, on one device."""
    expected, got = tuple(bins_shape(student)), tuple(bins_shape(teacher))
    if expected != got:
        raise ValueError(f"teacher: expected {expected} bins as student has, got {got}")
    if student.device != teacher.device:
        raise ValueError(f"teacher: expected device {student.device} as student has, got {teacher.device}")


def bins_shape(x: Tensor) -> torch.Size:
    """(B, F, T) or (B, C, F, T), of complex numbers or pairs."""
    return x.shape if x.is_complex() else x.shape[:-1]


def as_pairs(x: Tensor) -> Tensor:
    """`x` as pairs, without a copy (but for the lazy conjugates that torch has)."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def is_bands_last(x: Tensor) -> bool:
    """True if pairs lie as [channels][T][F], and not at the same time as [channels][F][T]."""
    return not x.is_contiguous() and x.transpose(-3, -2).is_contiguous()


def dense(x: Tensor) -> Tensor:
    """`x` as it lies in one of the two orders, else one contiguous copy."""
    return x if is_bands_last(x) else x.contiguous()


def dense_as(x: Tensor, like: Tensor) -> Tensor:
    """`x` in the order that `like` has."""
    return x.transpose(-3, -2).contiguous().transpose(-3, -2) if is_bands_last(like) else x.contiguous()


def empty_like(x: Tensor) -> Tensor:
    """Uninitialised memory with the shape and dtype of `x`, in the order that `dense(x)` has."""
    return x.new_empty(x.transpose(-3, -2).shape).transpose(-3, -2) if is_bands_last(x) else x.new_empty(x.shape)
