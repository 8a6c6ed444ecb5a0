"""gram: definitions, cases and gates."""

from __future__ import annotations

import numpy as np
import torch

from abckd_kernels.ops.gram import AXES

from ..inputs import DTYPES
from ..spec import AS_THEY_LIE, Make, Spec, cases


def rows(x: np.ndarray, axis: str, shifted: bool) -> np.ndarray:
    """(groups, rows, columns) of the definition."""
    if axis == "samples":
        x = x.reshape(1, len(x), -1)
    elif axis == "channels":
        x = x.reshape(*x.shape[:2], -1)
    else:
        x = np.moveaxis(x, 2, 1 if axis == "frames" else 0)
        x = x.reshape(*x.shape[:2], -1)
    if shifted:
        x = x.copy()
        x[:, 1:] -= x[:, :1]
    return x


def products(x: np.ndarray, axis: str, shifted: bool) -> np.ndarray:
    z = rows(x, axis, shifted)
    return z @ z.transpose(0, 2, 1)


def plain(x, axis, shifted):
    """In PyTorch, as a user would write it, in the dtype of the sums."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    x = {"samples": lambda: x[None], "channels": lambda: x, "frames": lambda: x.movedim(2, 1)}.get(
        axis, lambda: x.movedim(2, 0)
    )()
    z = x.reshape(*x.shape[:2], -1)
    if shifted:
        z = torch.cat([z[:, :1], z[:, 1:] - z[:, :1]], 1)
    return z @ z.mT


def arguments(make: Make, batch: int, shape, axis: str, shifted=False) -> dict:
    return {"x": make.feature(batch, *shape), "axis": axis, "shifted": shifted}


SPEC = Spec(
    "gram",
    arguments,
    # In float64 NumPy's product is PyTorch's, with the same errors: a wider one measures both.
    lambda x, axis, shifted: (products(x.astype(np.longdouble), axis, shifted),),
    lambda x, axis, shifted: (plain(x, axis, shifted),),
    cases=tuple(
        case
        for axis in AXES
        for case in (
            *cases(f"{axis}", DTYPES, AS_THEY_LIE, batch=3, shape=(4, 5, 6), axis=axis),
            *cases(f"{axis}, shifted", DTYPES, batch=5, shape=(9, 2, 16), axis=axis, shifted=True),
            *cases(f"{axis}, many", (torch.float32,), batch=2, shape=(65, 66, 4), axis=axis),
        )
    ),
    compiled=tuple(
        case
        for axis, dtype, layout in (
            ("samples", torch.float32, "contiguous"), ("channels", torch.float64, "contiguous"),
            ("channels", torch.float32, "contiguous"), ("frames", torch.float32, "contiguous"),
            ("frames", torch.bfloat16, "channels_last"), ("samples_per_frame", torch.float16, "contiguous"),
        )
        for shifted in (False, True)
        for case in cases(f"{axis}{', shifted' * shifted}", (dtype,), (layout,), batch=2, shape=(64, 200, 64),
                          axis=axis, shifted=shifted)
    ),
    traffic=(
        *cases("samples", (torch.float32,), batch=8, shape=(4, 64, 32), axis="samples"),
        *cases("channels", (torch.float32,), batch=1, shape=(16, 64, 64), axis="channels"),
    ),
    timed=tuple(
        case
        for axis, shape in (("samples", (64, 200, 64)), ("channels", (64, 200, 64)), ("frames", (16, 200, 64)))
        for case in cases(axis, (torch.float32, torch.bfloat16), shape=shape, axis=axis)
    ),
    launches={"triton": ("forward_kernel", "backward_kernel")},
    # Not tighter until it is counted on more cases: a run in the interpreter takes minutes.
    gates=lambda direction, case: {"unique_ratio": 1.5},
    condition=lambda given: 4.0,
    wide_results=True,
)  # fmt: skip
