"""tap: definitions, cases and gates."""

from __future__ import annotations

import torch

from ..exact import oracle, plain
from ..inputs import DTYPES
from ..spec import AS_THEY_LIE, Make, Spec, cases, gate

SINGLE_AND_HALF = (torch.float32, torch.bfloat16)
EVEN, WIDE, ODD, FLAT_ODD = (64, 64, 64), (256, 32, 32), (33, 67, 129), (5, 201, 257)
STUDENT, TEACHER = [(32, 130, 64)] * 3, [(64, 130, 64)] * 6  # whose step is counted
NETWORK = ((32, 200, 64), (64, 200, 64), (64, 200, 64))  # a layer of a student, two of a teacher


def arguments(make: Make, batch: int, shapes, power: int = 2, means: bool = True, lengths=None) -> dict:
    """shapes: of each feature, without the batch."""
    return {
        "features": [make.feature(batch, *shape) for shape in shapes],
        "power": power,
        "means": means,
        "lengths": make.lengths(lengths),
        "padded_length": max(shape[1] for shape in shapes),
    }


def exact(features, power, means, lengths, padded_length):
    valid = [oracle.valid_frames(lengths, x.shape[2], padded_length, len(x)) for x in features]
    pairs = list(zip(features, valid, strict=True))
    return [oracle.attention_map(x, power, v) for x, v in pairs], [oracle.channel_mean(x, v) for x, v in pairs if means]


def in_plain(features, power, means, lengths, padded_length):
    maps, channel_means = zip(*(plain.tap(x, power, lengths, padded_length) for x in features), strict=True)
    return list(maps), list(channel_means) if means else []


SPEC = Spec(
    "tap",
    arguments,
    exact,
    in_plain,
    cases=(
        *cases("dense", DTYPES, AS_THEY_LIE, batch=2, shapes=[(19, 4, 6)]),
        *cases("padded", DTYPES, AS_THEY_LIE, batch=2, shapes=[(19, 4, 6)], lengths=(4, 1)),
        *cases("any layout", DTYPES, ("sliced", "swapped", "expanded"), batch=2, shapes=[(6, 9)], means=False),
        *cases("layers", DTYPES, batch=3, shapes=[(3, 7, 5), (17, 3, 35), (1, 1, 1)], lengths=(7, 0, 3)),
        *(
            case
            for shape in ((3, 7), (17, 3, 35), (1, 1, 1), (1, 9), (64, 2, 2), (5, 1, 70), (33, 201, 257))
            for dtype, power in ((torch.float32, 1), (torch.bfloat16, 2))
            for case in cases(f"{shape}, power {power}", (dtype,), AS_THEY_LIE, batch=2, shapes=[shape], power=power)
        ),
    ),
    compiled=(
        *cases("network", DTYPES, AS_THEY_LIE, batch=2, shapes=NETWORK, means=False),
        *cases("means and lengths", DTYPES, AS_THEY_LIE, batch=2, shapes=NETWORK, power=1, lengths=(200, 77)),
    ),
    traffic=(
        *cases("even", DTYPES, AS_THEY_LIE, shapes=[EVEN], means=False),
        *cases("even with means", DTYPES, AS_THEY_LIE, shapes=[EVEN]),
        *cases("wide", SINGLE_AND_HALF, AS_THEY_LIE, shapes=[WIDE]),
        *cases("odd", SINGLE_AND_HALF, AS_THEY_LIE, shapes=[ODD]),
        *cases("flat odd", (torch.float32,), AS_THEY_LIE, shapes=[FLAT_ODD]),
        *cases("step, all layers", SINGLE_AND_HALF[:1], batch=1, shapes=STUDENT + TEACHER, means=False),
        *cases("step, student", SINGLE_AND_HALF[:1], batch=1, shapes=STUDENT, means=False),
        *cases("step, all layers of two", SINGLE_AND_HALF[1:], batch=2, shapes=STUDENT + TEACHER, means=False),
        *cases("step, student of two", SINGLE_AND_HALF[1:], batch=2, shapes=STUDENT, means=False),
        *cases("lengths", SINGLE_AND_HALF, AS_THEY_LIE, batch=4, shapes=[(32, 64, 64)], lengths=(64, 40, 7, 64)),
    ),
    timed=tuple(cases("network", DTYPES, AS_THEY_LIE, shapes=NETWORK, means=False)),
    launches={
        "triton": ("forward_kernel", "mean_kernel", "backward_kernel"),
        "cuda": ("tap_planes_kernel", "tap_rows_kernel", "tap_mean_kernel", "tap_backward_kernel"),
    },
    gates=gate("ratio"),
    framed={"features": 2, "grad_maps": 1},
)
