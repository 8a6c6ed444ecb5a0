"""spectral: definitions, cases and gates."""

from __future__ import annotations

import numpy as np
import torch

from ..exact.oracle import valid_frames
from ..exact.padding import masked, positions
from ..inputs import DTYPES
from ..spec import Make, Spec, cases, gate

SPECTRA = ("contiguous", "bands_last")  # bands_last: as torch.stft's result lies
SINGLE_AND_HALF = (torch.float32, torch.bfloat16)


def errors_and_gradients(student, teacher, exponent, valid, eps=1e-12):
    """Magnitude and complex errors (B,) of complex128 spectra, and the gradients of both, as pairs."""
    shape = *student.shape, 2
    errors, grads = np.zeros((2, len(student))), [np.zeros(shape), np.zeros(shape)]
    for b, frames in enumerate(valid):
        s, t = student[b, ..., :frames], teacher[b, ..., :frames]
        if not s.size:
            continue
        (p, u), (q, v) = ((np.sqrt(np.abs(z) ** 2 + eps), z) for z in (s, t))
        difference = u * p ** (exponent - 1) - v * q ** (exponent - 1)
        errors[:, b] = ((p**exponent - q**exponent) ** 2).mean(), (np.abs(difference) ** 2).mean()
        magnitude = 2 * (p**exponent - q**exponent) * exponent * p ** (exponent - 2) * u
        along = (u * difference.conj()).real * (exponent - 1) * p ** (exponent - 3)
        pair = 2 * (p ** (exponent - 1) * difference + along * u)
        for grad, z in zip(grads, (magnitude, pair), strict=True):
            grad[b, ..., :frames, 0], grad[b, ..., :frames, 1] = z.real / s.size, z.imag / s.size
    return errors, grads


def arguments(make: Make, batch: int, bins, exponent: float = 0.3, eps: float = 1e-12, lengths=None) -> dict:
    """bins: (bands, frames)."""
    return {
        "student": make.feature(batch, *bins, 2),
        "teacher": make.feature(batch, *bins, 2),
        "exponent": exponent,
        "eps": eps,
        "lengths": make.lengths(lengths),
        "padded_length": bins[1],
    }


def exact(student, teacher, exponent, eps, lengths, padded_length):
    valid = valid_frames(lengths, student.shape[2], padded_length, len(student))
    spectra = (x[..., 0] + 1j * x[..., 1] for x in (student, teacher))
    return errors_and_gradients(*spectra, exponent, valid, eps)[0]


def plain(student, teacher, exponent, eps, lengths, padded_length):
    """As anybody would write it, in the dtype of the sums."""
    wide = torch.promote_types(student.dtype, torch.float32)
    s, t = (masked(x.to(wide), lengths, padded_length) for x in (student, teacher))
    p, q = ((x.square().sum(-1, keepdim=True) + eps).sqrt() for x in (s, t))
    count = s.shape[1] * positions(s[..., 0], lengths, padded_length)
    errors = p**exponent - q**exponent, s * p ** (exponent - 1) - t * q ** (exponent - 1)
    return [error.square().flatten(1).sum(1) / count for error in errors]


SPEC = Spec(
    "spectral",
    arguments,
    exact,
    plain,
    cases=(
        *cases("dense", DTYPES, SPECTRA, batch=2, bins=(9, 20)),
        *cases("padded", DTYPES, SPECTRA, batch=3, bins=(7, 15), lengths=(0, 11, 15)),
        *cases("exponent 1", DTYPES, SPECTRA, batch=2, bins=(17, 5), exponent=1.0),
        *cases("one bin", SINGLE_AND_HALF, batch=2, bins=(1, 1)),
        *cases("long", SINGLE_AND_HALF, SPECTRA, batch=2, bins=(129, 41)),
    ),
    compiled=(
        *cases("spectrum", DTYPES, batch=2, bins=(257, 200)),
        *cases("spectrum, lengths", DTYPES, ("bands_last",), batch=2, bins=(257, 200), lengths=(200, 77)),
    ),
    traffic=(
        *cases("even", DTYPES, SPECTRA, bins=(256, 200)),
        *cases("odd", SINGLE_AND_HALF, SPECTRA, bins=(257, 201)),
        *cases("lengths", (torch.float32,), SPECTRA, batch=9, bins=(257, 201), lengths=(201, 170, 9) * 3),
    ),
    timed=tuple(cases("spectrum", DTYPES, SPECTRA, bins=(257, 1000))),
    launches={
        "triton": ("forward_kernel", "mean_kernel", "backward_kernel"),
        "cuda": ("spectral_forward_kernel", "spectral_mean_kernel", "spectral_backward_kernel"),
    },
    gates=gate("ratio"),
    framed={"student": 2, "teacher": 2},
    # 2^(c log2 m) in float32 has a relative error of some c |log2 m| units in the last place.
    condition=lambda given: 3.0,
)
