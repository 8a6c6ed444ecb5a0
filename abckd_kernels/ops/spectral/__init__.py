"""spectral: how far two spectra are apart once their magnitudes are compressed.

For a bin z = re + i im of a spectrum (B, F, T) or (B, C, F, T), c = exponent, N valid bins in sample b (see ops.shapes
on padding):

    m = sqrt(re^2 + im^2 + eps)
    magnitude[b] = 1/N sum (m_s^c - m_t^c)^2
    complex[b]   = 1/N sum |s m_s^(c-1) - t m_t^(c-1)|^2

Both are float32 (float64 for float64 and complex128), zero where a sample has no valid bin. eps lies inside the root,
so that silent bins have a finite gradient; with eps = 1e-12 that is the compressed spectrum of GTCRN's training loss.

Derivative, for the student only, with gm and gc the gradients of magnitude and complex,
d = s m_s^(c-1) - t m_t^(c-1):

    gs = 2/N [ gm c (m_s^c - m_t^c) m_s^(c-2) s  +  gc (m_s^(c-1) d + (c - 1) m_s^(c-3) (s . d) s) ]

At a silent bin that is up to eps^((c-1)/2) times the error, 16000 by default: in float16 what is larger than the
largest number becomes that number, not infinity.

Bytes, with S the size of a spectrum: forward reads 2 S; backward reads 2 S again, which costs less than storing what it
needs of them, and writes S, for both errors in one pass.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .. import shapes
from ..contract import op
from . import spectra

OPERANDS = "Tensor student, Tensor teacher, float exponent, float eps, Tensor? lengths, SymInt padded_length"
LARGEST_EXPONENT = 2.0
SMALLEST_EPS = 1e-30  # whose root is a normal float32


class SpectralErrors(NamedTuple):
    """What `spectral` returns, (B,) each: errors of the compressed magnitudes, and of the compressed complex bins."""

    magnitude: Tensor
    complex: Tensor


def spectral(
    student: Tensor,
    teacher: Tensor,
    *,
    exponent: float = 0.3,
    eps: float = 1e-12,
    lengths: Tensor | None = None,
    padded_length: int | None = None,
) -> SpectralErrors:
    """Errors of the compressed spectrum, per sample (the definition is at the top of this module).

    student         complex (B, F, T) or (B, C, F, T) as torch.stft gives it, complex64 or complex128, or pairs (re, im)
                    along one more axis (..., F, T, 2) in float32, float64, bfloat16 or float16. What lies as
                    (B, C, F, T) or, as torch.stft's result, (B, C, T, F) is read as it lies; another layout costs a
                    copy.
    teacher         of the same shape; where its dtype or layout is another one, a copy is made. Gets no gradient.
    exponent        c, above 0 and at most 2; 1 compresses nothing.
    eps             added to the squared magnitude, at least 1e-30.
    lengths         (B,) integers: valid frames.
    padded_length   the frames to which lengths refer; default: the spectrum's own T.

    Returns SpectralErrors(magnitude (B,), complex (B,)), means over the valid bins.

    Raises TypeError or ValueError that names the argument.
    """
    spectra.check(student, "student")
    spectra.check(teacher, "teacher")
    spectra.check_same(student, teacher)
    student, teacher = spectra.as_pairs(student), spectra.as_pairs(teacher.detach())
    dtype = torch.promote_types(student.dtype, teacher.dtype)
    padded_length = shapes.check_padded_length(student.shape[-2] if padded_length is None else padded_length)
    lengths = shapes.check_lengths(lengths, student.shape[0], student.device)
    options = check_number("exponent", exponent, 0, LARGEST_EXPONENT), check_number("eps", eps, SMALLEST_EPS, math.inf)
    return SpectralErrors(*_spectral(student.to(dtype), teacher.to(dtype), *options, lengths, padded_length))


def check_number(argument: str, value: float, least: float, most: float) -> float:
    """`value` as a float. Raises ValueError unless it is above 0, from `least` to `most`, and finite."""
    if not isinstance(value, int | float) or not (0 < value < math.inf and least <= value <= most):
        limits = f"at most {most:g}" if most < math.inf else f"at least {least:g}"
        raise ValueError(f"{argument}: expected a number above 0, {limits}, got {value!r}")
    return float(value)


def _forward_shapes(student, teacher, exponent, eps, lengths, padded_length):
    return tuple(student.new_empty(student.shape[:1], dtype=shapes.accumulation_dtype(student.dtype)) for _ in range(2))


def _backward_shapes(grad_magnitude, grad_complex, student, teacher, exponent, eps, lengths, padded_length):
    return spectra.empty_like(student)


_spectral = op(
    __name__,
    forward=f"({OPERANDS}) -> (Tensor magnitude, Tensor complex)",
    backward=f"(Tensor grad_magnitude, Tensor grad_complex, {OPERANDS}) -> Tensor student",
    forward_shapes=_forward_shapes,
    backward_shapes=_backward_shapes,
    native=("cpu", "cuda"),
)
