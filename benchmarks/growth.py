"""Time of abc, forward + backward, over 64 times the batch, channels, frames, bands and number of teacher layers.

The fitted exponent is the slope of log time over log compulsory bytes, to which the student's layer adds the same
however many layers the teacher has. The range begins with inputs of 39 MB: what fits into a cache is faster per byte,
which reads as faster than linear growth.
"""

from __future__ import annotations

from functools import partial

import numpy
import torch
from torch import Tensor

from abckd_kernels import abc_loss
from abckd_verify import markdown
from abckd_verify.machines.devices import DEVICES, median_milliseconds

from .measuring import machine

START = (8, 32, 100, 128)  # of the student's only layer, (B, C, T, F); the teacher's has twice the channels
AXES = ("batch", "channels", "frames", "bands")
RANGE = (1, 2, 4, 8, 16, 32, 64)
TURNS = 7


def measure(device: str = "cpu", start: tuple[int, ...] = START, factors: tuple[int, ...] = RANGE) -> dict:
    """Milliseconds (medians) at each size, and the exponent, by axis."""
    axes = {name: _grown(axis, device, start, factors) for axis, name in enumerate(AXES)}
    axes["teacher layers"] = _grown(None, device, start, factors)
    return {"machine": machine(device), "start": list(start), "factors": list(factors), "axes": axes}


def text(found: dict) -> str:
    """The table of what `measure` gave."""
    return markdown.table(
        ["", *(f"{factor} x" for factor in found["factors"]), "exponent"],
        [
            [name, *(f"{x:.2f}" for x in axis["milliseconds"]), f"{axis['exponent']:.2f}"]
            for name, axis in found["axes"].items()
        ],
    )


def exponent(sizes: list[int], milliseconds: list[float]) -> float:
    """Of the power of the sizes that fits best."""
    return float(numpy.polyfit(numpy.log(sizes), numpy.log(milliseconds), 1)[0])


def _grown(axis: int | None, device: str, start: tuple[int, ...], factors: tuple[int, ...]) -> dict:
    """axis: of the feature; None: the number of teacher layers."""
    medians, moved = [], []
    for factor in factors:
        shape = [size * factor if index == axis else size for index, size in enumerate(start)]
        student = torch.randn(shape, device=device, requires_grad=True)
        layers = factor if axis is None else 1
        teachers = [torch.randn(shape[0], 2 * shape[1], *shape[2:], device=device) for _ in range(layers)]
        medians.append(median_milliseconds(DEVICES[device], partial(_step, [student], teachers), TURNS, warm_up=2))
        moved.append(3 * student.nbytes + sum(x.nbytes for x in teachers))
    return {"milliseconds": medians, "bytes": moved, "exponent": exponent(moved, medians)}


def _step(student: list[Tensor], teachers: list[Tensor]) -> None:
    torch.autograd.grad(abc_loss(student, teachers), student)
