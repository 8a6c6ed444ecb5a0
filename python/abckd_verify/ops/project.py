"""project: definitions, cases and gates."""

from __future__ import annotations

import numpy as np
import torch

from ..exact.oracle import valid_frames
from ..exact.padding import masked
from ..inputs import DTYPES
from ..spec import AS_THEY_LIE, Make, Spec, cases, gate

SINGLE = (torch.float32,)
POSITIONS = (200, 64)


def arguments(
    make: Make, batch: int, channels, spatial, teachers: int = 1, bias=True, attended=False, lengths=None
) -> dict:  # fmt: skip
    """channels: of student and teacher."""
    return {
        "student": make.feature(batch, channels[0], *spatial),
        "weight": make.numbers(channels[1], channels[0]),
        "teachers": [make.feature(batch, channels[1], *spatial) for _ in range(teachers)],
        "bias": make.numbers(channels[1]) if bias else None,
        "attention": make.numbers(batch, teachers) if attended else None,
        "lengths": make.lengths(lengths),
        "padded_length": spatial[0],
    }


def exact(student, weight, teachers, bias, attention, lengths, padded_length):
    errors = np.zeros(len(student))
    for b, frames in enumerate(valid_frames(lengths, student.shape[2], padded_length, len(student))):
        x, *ys = (a[b, :, :frames].reshape(a.shape[1], -1) for a in (student, *teachers))
        shares = np.ones(len(ys)) if attention is None else attention[b]
        r = weight @ x + (0 if bias is None else bias[:, None]) - sum(a * y for a, y in zip(shares, ys, strict=True))
        errors[b] = (r**2).sum()
    return (errors,)


def plain(student, weight, teachers, bias, attention, lengths, padded_length):
    """In the dtype of the sums."""
    r = torch.einsum("dc,bc...->bd...", weight, student.to(weight.dtype))
    if bias is not None:
        r = r + bias.view(-1, *[1] * (r.dim() - 2))
    for j, t in enumerate(teachers):
        share = 1 if attention is None else attention[:, j].view(-1, *[1] * (r.dim() - 1))
        r = r - share * t.to(weight.dtype)
    return (masked(r, lengths, padded_length).square().flatten(1).sum(1),)


SPEC = Spec(
    "project",
    arguments,
    exact,
    plain,
    cases=(
        *cases("dense", DTYPES, AS_THEY_LIE, batch=2, channels=(6, 10), spatial=(5, 7)),
        *cases("padded, two teachers", DTYPES, AS_THEY_LIE, batch=3, channels=(16, 16), spatial=(6, 8), teachers=2,
               bias=False, attended=True, lengths=(6, 0, 4)),
        *cases("one value", SINGLE, batch=1, channels=(1, 1), spatial=(1, 1)),
        *cases("wide", SINGLE, AS_THEY_LIE, batch=2, channels=(65, 130), spatial=(9,)),
    ),
    compiled=(
        *cases("one teacher", DTYPES, AS_THEY_LIE, batch=2, channels=(32, 64), spatial=POSITIONS),
        *(x for pair in ((64, 128), (130, 130), (128, 256))
          for x in cases(f"{pair[0]} channels", SINGLE, batch=2, channels=pair, spatial=POSITIONS)),
        *cases("two teachers, lengths", SINGLE, batch=2, channels=(32, 64), spatial=POSITIONS, teachers=2, bias=False,
               attended=True, lengths=(200, 77)),
    ),
    traffic=(
        *cases("even", SINGLE, AS_THEY_LIE, channels=(16, 32), spatial=(128, 128)),
        *cases("odd", (torch.bfloat16,), channels=(17, 33), spatial=(67, 257)),
        *cases("lengths", SINGLE, batch=3, channels=(16, 32), spatial=(160, 64), lengths=(160, 150, 100)),
    ),
    timed=tuple(cases("one teacher", DTYPES, AS_THEY_LIE, channels=(32, 64), spatial=POSITIONS)),
    launches={"triton": ("forward_kernel", "backward_kernel")},
    gates=gate("unique_ratio"),
    framed={"student": 2, "teachers": 2},
    # A value is a sum of this many products, and cancellation leaves less than them.
    condition=lambda given: 4 + given["weight"].shape[0] ** 0.5,
)  # fmt: skip
