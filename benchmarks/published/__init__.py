"""Every loss as a user would have it: the published form in plain PyTorch, in one file per family, written from
formulas. torch.compile of these is the competitor.

A file has a function per loss, named as the table names it, that takes what our functional form takes; and in CASES
what `case` can't guess: inputs of another size, which options of ours make the published form, learned parts.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from abckd_kernels.losses.table import Entry

from ..measuring import STUDENT, TEACHER

Shape = tuple[int, ...]
WIDE = {torch.float64: torch.complex128}
LARGE = {  # (student, teacher) by what a loss takes
    "features": (STUDENT, TEACHER),
    "logits": ((512, 32000),) * 2,
    "spectra": ((16, 257, 1000),) * 2,
    "waveforms": ((16, 160000),) * 2,
}


@dataclass(frozen=True)
class Case:
    """How a loss is measured.

    published     form(student, teacher, **extra); with learned parts: makes that form.
    student       shape, or list of shapes, of the student's input; None: the usual one.
    teacher       as student.
    ours          makes our form, where it has learned parts; None: the function of the table.
    options       of ours, when it is timed.
    convention    options of ours that make the published form; None: ours is another on purpose, or learned.
    extra         of (student, teacher) to further arguments of both forms.
    note          on the row: why another size.
    """

    published: Callable[..., Tensor] | Callable[[], nn.Module]
    student: Shape | list[Shape] | None = None
    teacher: Shape | list[Shape] | None = None
    ours: Callable[[], nn.Module] | None = None
    options: dict = field(default_factory=dict)
    convention: dict | None = field(default_factory=dict)
    extra: Callable[..., dict] | None = None
    note: str = ""

    def inputs(self, entry: Entry, dtype: torch.dtype, seed: int = 0):
        """(student, which requires gradients, teacher), each a tensor or a list of them."""
        generator = torch.Generator().manual_seed(seed)
        usual = LARGE[entry.inputs]
        student, teacher = (given or size for given, size in zip((self.student, self.teacher), usual, strict=True))

        def make(shape, requires_grad):
            if isinstance(shape, list):
                return [make(one, requires_grad) for one in shape]
            if entry.inputs == "spectra":
                x = torch.randn(shape, dtype=WIDE.get(dtype, torch.complex64), generator=generator)
            else:
                x = torch.randn(shape, generator=generator).to(dtype)
            return x.requires_grad_(requires_grad)

        return make(student, True), make(teacher, False)


def case(name: str) -> Case | None:
    """The case of a loss of the table, None where there is none."""
    for module in pkgutil.iter_modules(__path__):
        family = importlib.import_module(f"{__name__}.{module.name}")
        cases = getattr(family, "CASES", {})
        if name in cases:
            return cases[name]
        if callable(getattr(family, name, None)):
            return Case(getattr(family, name))
    return None
