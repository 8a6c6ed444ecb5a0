"""pyramid: definitions, cases and gates."""

from __future__ import annotations

import numpy as np
import torch

from ..exact import oracle
from ..exact.padding import valid_frames
from ..inputs import DTYPES
from ..spec import AS_THEY_LIE, Make, Spec, cases

LEVELS = (4, 2, 1)


def pooled(d, cells):
    """Means over the windows of adaptive pooling, axis by axis."""
    for axis, count in enumerate(cells, 1):
        n = d.shape[axis]
        parts = [d.take(range(u * n // count, -(-(u + 1) * n // count)), axis).mean(axis) for u in range(count)]
        d = np.stack(parts, axis)
    return d


def errors(student, teacher, levels=LEVELS, valid=None):
    """(B,), each sample cut to its valid frames."""
    found = []
    for index, (s, t) in enumerate(zip(student, teacher, strict=True)):
        d = (s - t)[:, : None if valid is None else valid[index]]
        if d.shape[1] == 0:
            found.append(0.0)
            continue
        total, value, weight = 1.0, (d**2).mean(), 1.0
        for level in levels:
            if level < d.shape[1]:
                weight /= 2
                total += weight
                bands = d.shape[2:]
                value += weight * (pooled(d, (level, *[level if n > 1 else 1 for n in bands])) ** 2).mean()
        found.append(value / total)
    return np.array(found)


def plain_errors(student, teacher, levels=LEVELS):
    """The same by autograd, without padding."""
    d = student - teacher
    total, value, weight = 1.0, d.square().flatten(1).mean(1), 1.0
    for level in levels:
        if level < d.shape[2]:
            weight /= 2
            total += weight
            sizes = (level,) if d.dim() == 3 else (level, level if d.shape[3] > 1 else 1)
            pool = torch.nn.functional.adaptive_avg_pool1d if d.dim() == 3 else torch.nn.functional.adaptive_avg_pool2d
            value = value + weight * pool(d, sizes).square().flatten(1).mean(1)
    return value / total


def arguments(make: Make, batch: int, shape, lengths=None, levels=LEVELS) -> dict:
    return {
        "student": make.feature(batch, *shape),
        "teacher": make.feature(batch, *shape),
        "levels": list(levels),
        "lengths": make.lengths(lengths),
        "padded_length": shape[1],
    }


def exact(student, teacher, levels, lengths, padded_length):
    valid = oracle.valid_frames(lengths, student.shape[2], padded_length, len(student))
    return (errors(student, teacher, levels, valid),)


def plain(student, teacher, levels, lengths, padded_length):
    """In the dtype of the sums; with padding sample by sample."""
    wide = torch.promote_types(student.dtype, torch.float32)
    s, t = student.to(wide), teacher.to(wide)
    if lengths is None:
        return (plain_errors(s, t, levels),)
    valid = valid_frames(lengths, s.shape[2], padded_length).tolist()
    parts = [
        plain_errors(s[b : b + 1, :, :n], t[b : b + 1, :, :n], levels) if n else s[b : b + 1].flatten(1).sum(1) * 0
        for b, n in enumerate(valid)
    ]
    return (torch.cat(parts),)


SPEC = Spec(
    "pyramid",
    arguments,
    exact,
    plain,
    cases=(
        *cases("dense", DTYPES, AS_THEY_LIE, batch=2, shape=(3, 6, 5)),
        *cases("padded", DTYPES, AS_THEY_LIE, batch=4, shape=(3, 10, 5), lengths=(10, 0, 2, 7)),
        *cases("one band", DTYPES, batch=2, shape=(3, 4, 1)),
        *cases("many channels", DTYPES, batch=2, shape=(70, 5, 3)),
        *cases("long", (torch.float32,), batch=1, shape=(2, 33, 70)),
    ),
    compiled=(
        *cases("dense", (torch.float32, torch.float64, torch.bfloat16), AS_THEY_LIE, batch=2, shape=(64, 200, 64)),
        *cases("lengths", (torch.float32, torch.float64, torch.bfloat16), AS_THEY_LIE, batch=2, shape=(64, 200, 64),
               lengths=(200, 77)),
    ),
    # Long: what forward keeps per column, 32 bytes, is little then.
    traffic=tuple(cases("long", (torch.float32,), AS_THEY_LIE, batch=1, shape=(2, 400, 64))),
    timed=tuple(cases("feature", DTYPES, AS_THEY_LIE, shape=(64, 200, 64))),
    launches={"triton": ("forward_kernel", "backward_kernel")},
    # What forward keeps of each column is handed on; not tighter until it is counted on more cases.
    gates=lambda direction, case: {"unique_ratio": 1.5},
    framed={"student": 2, "teacher": 2},
    condition=lambda given: 8.0,
)  # fmt: skip
