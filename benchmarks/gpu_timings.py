"""The timings of `benchmarks.gpu_check`: rows of benchmarks/suite.py for abc, tap and compress, by every backend."""

from __future__ import annotations

import torch

from .gpu_parts import Setting
from .subjects import LAYOUTS, Setup, subjects
from .suite import Effort, row

OPS = ("abc", "tap", "compress")


def setups(setting: Setting) -> list[tuple[str, Setup]]:
    """What is timed: the most important first, in case time runs out."""
    found = [
        (op, Setup(dtype, "dns" if setting.is_gpu else "tiny", layout, setting.device))
        for layout in LAYOUTS
        for op in OPS
        for dtype in (torch.float32, torch.bfloat16)
    ]
    found = [(op, setup) for op, setup in found if not subjects()[op].why_not(setup)]
    return found[:3] if setting.quick else found


def timings(setting: Setting) -> list[dict]:
    """One row per op, dtype and layout. Raises AssertionError where one of ours can't run or is wrong."""
    effort = Effort((10 if setting.quick else 30) if setting.is_gpu else 3, network=False, extras=False)
    rows, broken = [], []
    for op, setup in setups(setting):
        try:
            rows.append(row(subjects()[op], setup, effort))
        except Exception as error:
            broken.append(f"{op}, {setup}: {type(error).__name__}: {error}")
            continue
        errors = rows[-1]["errors"]
        broken += [f"{op}, {setup}: {name}: {errors[name]}" for name in setting.backends if name in errors]
        setting.record(rows)
    assert not broken, "; ".join(broken)
    return rows
