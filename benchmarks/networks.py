"""A loss in its place: between two networks, whose features go on into a following layer.

The networks are as cheap as networks can be, a gain per channel before each feature and another behind it, so that the
loss is not drowned: what counts is that the student's feature gets a gradient from the layer behind it too, which has
to be added to that of the loss, and that the teacher's is not needed any more once the loss has read it. Every form
runs in a Distiller; those of ours that can tap, do.

What share of a training step a loss is, is said for a step of convolutions, see `step`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from abckd_kernels import Distiller
from abckd_verify.machines.devices import DEVICES, median_milliseconds

from .subjects import SIZES, Inputs, Setup, Subject, as_list, parameters

LAYERS = (3, 6)
STEP = "student of 3 convolutions 3x3, teacher of 6, with the channels and sizes of the features: forward of both, backward of the student"  # noqa: E501
REPEATS = 3


class _Gain(nn.Module):
    def __init__(self, like: Tensor):
        super().__init__()
        self.gain = nn.Parameter(torch.ones_like(like[:1, :, :1] if like.dim() == 3 else like[:1, :, :1, :1]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class _Network(nn.Module):
    """forward(students, teachers) runs on whichever of the two it was made for; mean squares of its last layers."""

    def __init__(self, features: list[Tensor], side: int):
        super().__init__()
        self.before, self.behind = (nn.ModuleList(_Gain(x) for x in features) for _ in range(2))
        self.side = side

    def forward(self, *sides: list[Tensor]) -> Tensor:
        layers = zip(self.before, self.behind, sides[self.side], strict=True)
        return sum(behind(before(x)).square().mean() for before, behind, x in layers)


def in_network(
    subject: Subject, form: Callable[..., Tensor] | None, student: Inputs, teacher: Inputs
) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """(step, leaves): step() gives the loss of a training step with `form`, None: without it; leaves get gradients."""
    several = isinstance(student, list)
    sides = [[x.detach() for x in as_list(group)] for group in (student, teacher)]
    extra = subject.extra(student, teacher)
    networks = [_Network(features, side) for side, features in enumerate(sides)]
    names = [[f"before.{index}" for index in range(len(features))] for features in sides]

    def without() -> Tensor:
        with torch.no_grad():
            networks[1](*sides)
        return networks[0](*sides)

    if form is None:
        return without, list(networks[0].parameters())

    def loss(students, teachers):
        return form(students, teachers, **extra) if several else form(students[0], teachers[0], **extra)

    distiller = Distiller(*networks, *names, form if hasattr(form, "tap_options") and not extra else loss)

    def step() -> Tensor:
        output = distiller(*sides)
        return output.student + output.loss

    return step, [*networks[0].parameters(), *parameters(form)]


@cache
def step_milliseconds(setup: Setup) -> float:
    """Median of the training step that `STEP` describes."""
    device, sides = DEVICES[setup.device], SIZES[setup.size]["features"]
    students, teacher = (_convolutions(shape, count, setup) for shape, count in zip(sides, LAYERS, strict=True))
    inputs = [torch.randn(shape).to(setup.device, setup.dtype) for shape in sides]

    def step() -> None:
        with torch.no_grad():
            teacher(inputs[1])
        torch.autograd.grad(students(inputs[0]).square().mean(), list(students.parameters()))

    return median_milliseconds(device, step, turns=REPEATS, warm_up=1)


def _convolutions(shape: tuple[int, ...], count: int, setup: Setup) -> nn.Sequential:
    channels = shape[1]
    layers = [m for _ in range(count) for m in (nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.ReLU())]
    return nn.Sequential(*layers).to(setup.device, setup.dtype)
