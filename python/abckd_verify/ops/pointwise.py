"""pointwise: definitions, cases and gates."""

from __future__ import annotations

import numpy as np
import torch

from abckd_kernels.ops.pointwise import KINDS

from ..exact.oracle import valid_frames
from ..exact.padding import masked
from ..inputs import DTYPES
from ..spec import AS_THEY_LIE, Make, Spec, cases, gate

SINGLE_AND_HALF = (torch.float32, torch.bfloat16)
EVEN, ODD = (64, 64, 64), (33, 67, 129)


# ------------------------------------------------------------------- the definition: values, and slopes for s and third


def squared(s, t, third, m, x):
    return (s - t) ** 2, 2 * (s - t), None


def power(s, t, third, m, x):
    d = np.abs(s - t)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(d > 0, x * d ** (x - 1) * np.sign(s - t), 0)
    return d**x, slope, None


def rectified(s, t, third, m, x):
    d = np.maximum(s, 0) - t
    return d**2, np.where(s > 0, 2 * d, 0), None


def boundary(s, t, third, m, x):
    target = np.where(t > 0, x, -x)  # beyond which s lies on the teacher's side, with a margin
    miss = np.maximum(0, np.where(t > 0, target - s, s - target))
    return miss**2, np.where(t > 0, -2, 2) * miss, None


def margin(s, t, third, m, x):
    target = np.maximum(t, m.reshape(-1, *[1] * (s.ndim - 2)))
    d = np.where((t > 0) | (s > target), s - target, 0)
    return d**2, 2 * d, None


def heteroscedastic(s, t, third, m, x):
    variance = x + np.exp(third)
    slope_of_third = 1 - (t - s) ** 2 / variance**2 * np.exp(third)
    return (t - s) ** 2 / variance + third, 2 * (s - t) / variance, slope_of_third


DEFINITIONS = {f.__name__: f for f in (squared, power, rectified, boundary, margin, heteroscedastic)}


def plain_values(kind, s, t, third, m, x):
    """As anybody would write it in PyTorch, in the features' own dtype."""
    if kind == "rectified":
        return (s.relu() - t) ** 2
    if kind == "boundary":
        return torch.where(t > 0, x - s, s + x).relu() ** 2
    if kind == "margin":
        target = torch.maximum(t, m.view(-1, *[1] * (s.dim() - 2)))
        return (s - target) ** 2 * ((s > target) | (t > 0))
    if kind == "heteroscedastic":
        return (t - s) ** 2 / (x + third.exp()) + third
    return (s - t).abs() ** (x if kind == "power" else 2)


def arguments(make: Make, batch: int, shape, kind: str, lengths=None) -> dict:
    needs = KINDS[kind]
    return {
        "student": make.feature(batch, *shape),
        "teacher": make.feature(batch, *shape),
        "third": make.feature(batch, *shape) if needs.third else None,
        "per_channel": -make.numbers(shape[0]).abs() - 0.1 if needs.per_channel else None,
        "kind": kind,
        "parameter": needs.parameter or 0.0,
        "lengths": make.lengths(lengths),
        "padded_length": shape[1],
    }


def exact(student, teacher, third, per_channel, kind, parameter, lengths, padded_length):
    value = DEFINITIONS[kind](student, teacher, third, per_channel, parameter)[0]
    counts = np.zeros(student.shape, bool)
    for b, frames in enumerate(valid_frames(lengths, student.shape[2], padded_length, len(student))):
        counts[b, :, :frames] = True
    return (np.where(counts, value, 0).reshape(*student.shape[:2], -1).sum(2),)


def plain(student, teacher, third, per_channel, kind, parameter, lengths, padded_length):
    m = None if per_channel is None else per_channel.to(student.dtype)
    values = plain_values(kind, student, teacher, third, m, parameter)
    return (masked(values, lengths, padded_length).flatten(2).sum(2),)


SPEC = Spec(
    "pointwise",
    arguments,
    exact,
    plain,
    cases=tuple(
        case
        for kind in KINDS
        for case in (
            *cases(f"{kind}, dense", DTYPES, AS_THEY_LIE, batch=2, shape=(4, 5, 6), kind=kind),
            *cases(f"{kind}, padded", DTYPES, batch=2, shape=(3, 6, 4), kind=kind, lengths=(6, 2)),
            *cases(f"{kind}, one value", SINGLE_AND_HALF, batch=2, shape=(1, 1, 1), kind=kind),
            *cases(f"{kind}, odd", SINGLE_AND_HALF, AS_THEY_LIE, batch=1, shape=(17, 3, 35), kind=kind),
        )
    ),
    compiled=tuple(
        case
        for kind in KINDS
        for case in (
            *cases(kind, SINGLE_AND_HALF, AS_THEY_LIE, batch=2, shape=(64, 200, 64), kind=kind),
            *cases(f"{kind}, lengths", (torch.float64, torch.float16), AS_THEY_LIE, batch=2, shape=(64, 200, 64),
                   kind=kind, lengths=(200, 77)),
        )
    ),
    traffic=(
        *(x for kind in KINDS for x in cases(f"{kind} even", (torch.float32,), AS_THEY_LIE, shape=EVEN, kind=kind)),
        *cases("heteroscedastic even", (torch.bfloat16, torch.float64), AS_THEY_LIE, shape=EVEN,
               kind="heteroscedastic"),
        *cases("margin odd", SINGLE_AND_HALF, AS_THEY_LIE, shape=ODD, kind="margin"),
        *cases("boundary lengths", SINGLE_AND_HALF, AS_THEY_LIE, batch=4, shape=(32, 64, 64), kind="boundary",
               lengths=(64, 40, 7, 64)),
    ),
    timed=(
        *cases("squared", DTYPES, AS_THEY_LIE, shape=(64, 200, 64), kind="squared"),
        *(x for kind in list(KINDS)[1:] for x in cases(kind, SINGLE_AND_HALF, shape=(64, 200, 64), kind=kind)),
    ),
    launches={"triton": ("forward_kernel", "add_kernel", "backward_kernel")},
    gates=gate("ratio"),
    framed={"student": 2, "teacher": 2, "third": 2},
    condition=lambda given: 2.0,
)  # fmt: skip
