"""dots: definitions, cases and gates."""

from __future__ import annotations

import numpy as np
import torch

from ..inputs import DTYPES
from ..spec import AS_THEY_LIE, Make, Spec, cases, gate


def products(x, y):
    x, y = (a.reshape(*a.shape[:2], -1) for a in (x, y))
    e = y - x
    return np.stack([values.sum(2) for values in (x * x, y * y, x * y, x * e, e * e, x, e)], -1)


def plain(x, y):
    """In the dtype of the result."""
    x, y = (a.double().flatten(2) for a in (x, y))
    e = y - x
    return (torch.stack([values.sum(2) for values in (x * x, y * y, x * y, x * e, e * e, x, e)], -1),)


def arguments(make: Make, batch: int, shape) -> dict:
    return {"x": make.feature(batch, *shape), "y": make.feature(batch, *shape)}


SPEC = Spec(
    "dots",
    arguments,
    lambda x, y: (products(x, y),),
    plain,
    cases=(
        *cases("dense", DTYPES, AS_THEY_LIE, batch=3, shape=(4, 5, 6)),
        *cases("any layout", DTYPES, ("sliced", "swapped", "expanded"), batch=2, shape=(5, 4, 6)),
        *cases("one value", DTYPES, batch=2, shape=(1, 1, 1)),
        *cases("long", DTYPES, batch=2, shape=(2, 1, 513)),
    ),
    compiled=tuple(cases("two features", DTYPES, batch=2, shape=(64, 200, 64))),
    traffic=(
        *cases("even", (torch.float32, torch.bfloat16), shape=(64, 64, 64)),
        *cases("odd", (torch.float32,), shape=(33, 67, 129)),
    ),
    timed=tuple(cases("two features", DTYPES, shape=(64, 200, 64))),
    launches={"triton": ("forward_kernel", "backward_kernel")},
    gates=gate("unique_ratio"),
    condition=lambda given: 4.0,
    wide_results=True,
)
