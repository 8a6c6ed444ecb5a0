"""What the numerics tests run over: the backends that serve here, and the inputs of abckd_verify."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

from abckd_kernels import backends
from abckd_verify.inputs import *  # noqa: F403

# Triton serves CPU tensors in its interpreter only: then it is the one to test, and nothing else is. In the emulator
# CUDA's kernels stand in for the CPU's (conftest.py).
EMULATED = "ABCKD_TEST_SIMT" in os.environ
BACKENDS = tuple(
    name
    for name in (("triton",) if backends.TRITON_INTERPRET else ("cpu",) if EMULATED else ("cpu", "reference"))
    if backends.why_not("tap_forward", name, "cpu") is None
)


def pairs(*axes: Sequence) -> list[tuple]:
    """Few tuples, one item of each axis, in which every two items of different axes meet: where a fault depends on at
    most two of the axes, the full product finds no more."""
    numbers = [range(len(axis)) for axis in axes]
    left = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(range(len(axes)), 2)
        for x, y in itertools.product(numbers[a], numbers[b])
    }
    chosen = []
    everything = list(itertools.product(*numbers))
    while left:
        best = max(everything, key=lambda row: len(left & set(itertools.combinations(enumerate(row), 2))))
        left -= set(itertools.combinations(enumerate(best), 2))
        chosen.append(tuple(axis[k] for axis, k in zip(axes, best, strict=True)))
    return chosen


def id_of(value) -> str:
    """For parametrize: of a dtype, a layout, a shape, a name."""
    return getattr(value, "__name__", str(value).removeprefix("torch."))
