"""Numbers of published code, ../shared/parity, and what becomes of each.

A family's test file says so in

    PUBLISHED        {vector: (function, options)} or (function, options, rtol): equal to the published loss and
                     gradients; or {vector: f}, f(Vectors) to (loss, {published parameter name: parameter}) where there
                     is something to set up first.
    DIFFERS          {vector: why}: ours differs on purpose; a test of the file shows the difference.
    NOT_APPLICABLE   {vector: why}: what it measures isn't offered.

`python -m pytest tests/losses -q --parity` lists all.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

PARITY = Path(__file__).resolve().parents[3] / "shared" / "parity"
HERE = Path(__file__).parent
KINDS = {"PUBLISHED": "reproduced", "DIFFERS": "documented difference", "NOT_APPLICABLE": "not applicable"}
# float64 numbers are good to these; float32 ones were computed by code with other roundings.
LOSS_DIGITS = {"float64": 1e-10, "float32": 3e-4}
GRADIENT_DIGITS = {"float64": 1e-7, "float32": 3e-4}


def index() -> dict[str, dict]:
    """Entries of INDEX.json by vector, the file's name without its ending; empty where it isn't."""
    if not PARITY.is_dir():
        return {}
    entries = json.loads((PARITY / "INDEX.json").read_text())["entries"]
    return {entry["file"].removesuffix(".npz"): entry for entry in entries}


def accounted() -> list[tuple[str, str, object, object]]:
    """(vector, one of KINDS, what was said, module) of every test file of this folder."""
    modules = [importlib.import_module(file.stem) for file in sorted(HERE.glob("test_*.py"))]
    return [
        (vector, kind, said, module)
        for module in modules
        for kind in KINDS
        for vector, said in getattr(module, kind, {}).items()
    ]


class Vectors:
    """Features, and the loss and gradients that published code gives for them."""

    def __init__(self, name: str):
        self.entry = index()[name]
        self.data = {key: torch.from_numpy(x) for key, x in np.load(PARITY / self.entry["file"]).items()}
        self.students = [self[f"s{i}"].requires_grad_() for i in range(len(self.entry["student_shapes"]))]
        self.teachers = [self[f"t{i}"] for i in range(len(self.entry["teacher_shapes"]))]

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.data[key]

    def assert_equal(self, loss, rtol=None, parameters=()) -> None:
        """Loss and gradients are the published ones; parameters: {published name: parameter}, or pairs of these."""
        dtype = self.entry["dtype"]
        assert loss.item() == pytest.approx(self["loss"].item(), rel=rtol or LOSS_DIGITS[dtype])
        parameters, digits = dict(parameters), GRADIENT_DIGITS[dtype]
        names = [f"gs{i}" for i in range(len(self.students))] + [f"gp.{name}" for name in parameters]
        for name, grad in zip(names, torch.autograd.grad(loss, [*self.students, *parameters.values()]), strict=True):
            torch.testing.assert_close(grad, self[name], rtol=digits, atol=digits * self[name].abs().max().item())
