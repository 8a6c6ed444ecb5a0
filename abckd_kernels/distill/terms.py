"""A term of a distillation loss: layers of both networks, and the loss between them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..losses import table
from .hooks import Observed
from .layers import Layer
from .orders import SPATIAL
from .wanted import Taken, Wanted, wanted_of


@dataclass
class Term:
    """One of several losses of a Distiller.

    student_layers, teacher_layers   names or `Layer`s, in the order in which the loss takes them.
    loss      a loss of this library, or any callable loss(student_features, teacher_features) of two lists.
    weight    its share in the sum.
    teacher   the name of the teacher, where there are several.
    name      the key of its value in `DistillerOutput.losses`.
    """

    student_layers: Sequence[str | Layer]
    teacher_layers: Sequence[str | Layer]
    loss: Callable[..., Any]
    weight: float | Tensor = 1.0
    teacher: str | None = None
    name: str | None = None


class Bound:
    """A term, and which of the wanted features of both networks are its own.

    prefix   of the arguments in messages: "" or "terms[1].".
    """

    def __init__(self, term: Term, prefix: str, students: list[Wanted], teachers: list[Wanted]):
        if isinstance(term.loss, type):
            raise TypeError(f"{prefix}loss: expected a loss, got the class {term.loss.__name__}; make one of it")
        if not callable(term.loss):
            raise TypeError(f"{prefix}loss: expected a callable, got {type(term.loss).__name__}")
        self.term, options = term, getattr(term.loss, "tap_options", None)
        self.taps = options is not None and hasattr(term.loss, "from_taps")
        options = options if self.taps else None
        self.students = _places(wanted_of(term.student_layers, f"{prefix}student_layers", options), students)
        self.teachers = _places(wanted_of(term.teacher_layers, f"{prefix}teacher_layers", options), teachers)
        entries = (entry for entry in table() if term.loss is entry.function or isinstance(term.loss, entry.module))
        self.of_tensors = getattr(next(entries, None), "inputs", "features") != "features"
        if self.of_tensors and (len(self.students), len(self.teachers)) != (1, 1):
            raise ValueError(f"{prefix}student_layers: this loss compares one output of each network, name one layer")

    def __call__(
        self, student: Taken, teacher: Taken, padding: Mapping[str, Any], observed: Sequence[Observed | None]
    ) -> tuple[Tensor, Tensor | None]:
        """The value, and the attention or None."""
        sides = [
            [value for place in places for value in taken.values[place]]
            for places, taken in ((self.students, student), (self.teachers, teacher))
        ]
        if not padding and (student.padding or teacher.padding):
            found = {**teacher.padding, **student.padding}
            padding = found if _takes(self.term.loss, "lengths") else {}
        try:
            if self.taps:
                taps = [[list(part) for part in zip(*values, strict=True)] for values in sides]
                return self.term.loss.from_taps(*taps, **padding)  # type: ignore[attr-defined]
            if self.of_tensors:
                return self.term.loss(sides[0][0], sides[1][0], **padding), None
            return self.term.loss(*sides, **padding), None
        except (TypeError, ValueError, RuntimeError) as error:
            said = _explained(str(error), (self.students, self.teachers), observed)
            if said is None:
                raise
            raise type(error)(said) from error


def _places(wanted: list[Wanted], known: list[Wanted]) -> list[int]:
    """Where each stands in the list of all that is wanted of the network, which gets what it lacks."""
    places = []
    for one in wanted:
        same = (k for k, other in enumerate(known) if (other.layer, other.tap) == (one.layer, one.tap))
        place = next(same, None)
        if place is None:
            place = len(known)
            known.append(one)
        places.append(place)
    return places


def _takes(loss: Callable, argument: str) -> bool:
    parameters = inspect.signature(getattr(loss, "forward", loss)).parameters
    return argument in parameters or any(x.kind is x.VAR_KEYWORD for x in parameters.values())


def _explained(said: str, places: Sequence[list[int]], observed: Sequence[Observed | None]) -> str | None:
    """What a loss said of its features, with the layers' names and how their axes were read; None: nothing of them."""
    notes = []
    for side, argument in enumerate(("student", "teacher")):
        watching = observed[side]
        for index in dict.fromkeys(re.findall(rf"{argument}_(?:features|logits|maps)(?:\[(\d+)\])?", said)):
            number = int(index or 0)
            if watching is None or number >= len(places[side]):
                continue
            place = places[side][number]
            shape, wanted = watching.shapes.get(place), watching.wanted[place]
            if shape is None:
                continue
            text = f"{wanted.where} was read as (batch {shape[0]}, channels {shape[1]}, positions {tuple(shape[2:])})"
            if wanted.layer.order is None and len(shape) > 2:
                order = f"b{SPATIAL[: len(shape) - 2]}c"
                text += f"; if its channels are the last axis, name it '{wanted.layer}@{order}'"
            notes.append(text)
    return f"{said}; {'; '.join(notes)}" if notes else None
