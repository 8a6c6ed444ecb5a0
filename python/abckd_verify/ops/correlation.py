"""correlation: definitions, cases and gates."""

from __future__ import annotations

import numpy as np
import torch

from ..inputs import DTYPES
from ..spec import Make, Spec, cases

SHAPES = {"vocabulary": (64, (50257, 1)), "short rows": (4096, (10, 1)), "mask": (2, (64, 200 * 64))}


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def distance(x, y, axis):
    """1 - rho along an axis; where one of both is constant 1, where both are 0."""
    x, y = (a - a.mean(axis, keepdims=True) for a in (x, y))
    norms = [np.sqrt((a**2).sum(axis)) for a in (x, y)]
    silent = [n < 1e-14 for n in norms]
    rho = (x * y).sum(axis) / np.where(silent[0] | silent[1], 1, norms[0] * norms[1])
    return np.where(silent[0] | silent[1], (silent[0] ^ silent[1]).astype(float), 1 - rho)


def arguments(make: Make, batch: int, rows, ignored=False, temperature: float = 1.5) -> dict:
    """rows: (classes, inner) of the logits (batch, classes, inner)."""
    return {
        "student": make.logits(batch, *rows),
        "teacher": make.logits(batch, *rows),
        "ignore": make.flags(batch, 1, rows[1]) if ignored else None,
        "temperature": torch.full((), temperature, dtype=torch.float64, device=make.device),
    }


def exact(student, teacher, ignore, temperature):
    q, p = (softmax(np.moveaxis(x, 1, -1).reshape(-1, x.shape[1]) / temperature) for x in (student, teacher))
    if ignore is not None:
        q, p = (x[~ignore.reshape(-1)] for x in (q, p))
    return distance(q, p, 1).mean(), distance(q, p, 0).mean()


def plain(student, teacher, ignore, temperature):
    """In the dtype of the sums."""
    wide = torch.promote_types(student.dtype, torch.float32)
    q, p = ((x.to(wide) / temperature).softmax(1).movedim(1, -1).flatten(0, -2) for x in (student, teacher))
    if ignore is not None:
        q, p = (x[~ignore.flatten()] for x in (q, p))

    def apart(axis):
        a, b = (x - x.mean(axis, keepdim=True) for x in (q, p))
        return (1 - torch.cosine_similarity(a, b, axis, eps=1e-30)).mean()

    return apart(1), apart(0)


SPEC = Spec(
    "correlation",
    arguments,
    exact,
    plain,
    cases=(
        *cases("rows", DTYPES, batch=40, rows=(100, 1)),
        *cases("planes", DTYPES, batch=3, rows=(7, 20)),
        *cases("ignored rows", DTYPES, batch=40, rows=(6, 1), ignored=True),
        *cases("ignored positions", DTYPES, batch=3, rows=(4, 20), ignored=True),
        *cases("vocabulary", (torch.float32,), batch=12, rows=(2100, 1)),
    ),
    compiled=tuple(
        case
        for name, (batch, rows) in SHAPES.items()
        for ignored in (False, True)
        for case in cases(f"{name}{', ignored' * ignored}", (torch.float32, torch.float64, torch.bfloat16), batch=batch,
                          rows=rows, ignored=ignored)
    ),
    traffic=(
        *cases("rows", (torch.float32,), batch=128, rows=(264, 1)),
        *cases("mask", (torch.float32,), batch=1, rows=(64, 640)),
    ),
    timed=(
        *cases("vocabulary", (torch.float32, torch.bfloat16), rows=(32000, 1)),
        *cases("mask", (torch.float32, torch.bfloat16), rows=(64, 200 * 64)),
    ),
    launches={"triton": ("row_kernel", "class_kernel", "backward_kernel")},
    # The kernels hand partial sums of classes on, 12 % in long rows; not tighter until it is counted on more cases.
    gates=lambda direction, case: {"unique_ratio": 1.5},
    # A distance is a difference from 1, and a gradient one of large parts.
    condition=lambda given: 400.0,
)  # fmt: skip
