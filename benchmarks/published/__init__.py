"""Every loss, and the ops tap and compress, as a user would have them: the published form in plain PyTorch, in one file
per family, written from formulas. torch.compile of these is the competitor.

A file has a function per loss, named as the table names it, that takes what our functional form takes; and in CASES
what `case` can't guess: inputs of other shapes, which options of ours make the published form, learned parts.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

Shape = tuple[int, ...]
Shapes = Shape | list[Shape]


@dataclass(frozen=True)
class Case:
    """How a loss is measured.

    published     form(student, teacher, **extra); where `ours` is given: makes that form, as `ours` does.
    shapes        of the usual shapes (student, teacher) of a size to those of this loss; a list for several layers.
    ours          of the inputs (student, teacher) to our form, where it has learned parts; None: the functional form.
    options       of ours, when it is timed.
    convention    options of ours that make the published form; None: ours is another on purpose, or learned.
    extra         of (student, teacher) to further arguments of both forms.
    tapped        of the inputs (student, teacher) to our form that a Distiller feeds by `tap`; None: it gets features.
    in_network    whether it compares features, so that it can be measured between two networks.
    half          whether there is a form of it in half precision.
    note          on the row: why other shapes.
    """

    published: Callable[..., Tensor] | Callable[..., nn.Module]
    shapes: Callable[[Shape, Shape], tuple[Shapes, Shapes]] = lambda student, teacher: (student, teacher)
    ours: Callable[..., nn.Module] | None = None
    options: dict = field(default_factory=dict)
    convention: dict | None = field(default_factory=dict)
    extra: Callable[..., dict] | None = None
    tapped: Callable[..., nn.Module] | None = None
    in_network: bool = True
    half: bool = True
    note: str = ""


def layers(student: int, teacher: int) -> Callable[[Shape, Shape], tuple[Shapes, Shapes]]:
    """`Case.shapes` of so many layers of each."""
    return lambda s, t: ([s] * student, [t] * teacher)


def channels(*groups: list[Tensor]) -> list[list[int]]:
    """Channels of the features of each group."""
    return [[x.shape[1] for x in features] for features in groups]


def case(name: str) -> Case | None:
    """The case of a loss or op, None where there is none."""
    for module in pkgutil.iter_modules(__path__):
        family = importlib.import_module(f"{__name__}.{module.name}")
        cases = getattr(family, "CASES", {})
        if name in cases:
            return cases[name]
        if callable(getattr(family, name, None)):
            return Case(getattr(family, name))
    return None
