"""Numbers of published code, tests/parity, and what becomes of each.

A family's test file says so in

    PUBLISHED        {vector: (function, options)} or (function, options, rtol): equal to the published loss and
                     gradients; or {vector: f}, f(Vectors) to (loss, {published parameter name: parameter}) where there
                     is something to set up first.
    DIFFERS          {vector: why}: ours differs on purpose; a test of the file shows the difference.
    NOT_APPLICABLE   {vector: why}: what it measures isn't offered.
"""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

PARITY = Path(__file__).resolve().parents[1] / "parity"
HERE = Path(__file__).parent
KINDS = ("PUBLISHED", "DIFFERS", "NOT_APPLICABLE")
INDEX: dict[str, dict] = json.loads((PARITY / "index.json").read_text())
# float64 numbers are good to these; float32 ones were computed by code with other roundings.
LOSS_DIGITS = {"float64": 1e-10, "float32": 3e-4}
GRADIENT_DIGITS = {"float64": 1e-8, "float32": 3e-4}


def accounted() -> list[tuple[str, str, object, object]]:
    """(vector, one of KINDS, what was said, module) of every test file of this folder."""
    modules = [importlib.import_module(file.stem) for file in sorted(HERE.glob("test_*.py"))]
    return [
        (vector, kind, said, module)
        for module in modules
        for kind in KINDS
        for vector, said in getattr(module, kind, {}).items()
    ]


def made(shape, normal=None, zeroed=None, uniform=None, seed=None, skip=0) -> torch.Tensor | None:
    """The input that the index describes by the seeds of its random numbers; None: its numbers are kept."""
    if normal:
        terms = [w * torch.randn(shape, generator=_seeded(seed), dtype=torch.float64) for w, seed in normal]
        value = sum(terms[1:], terms[0])
        if zeroed is not None:
            value[zeroed] = 0
        return value
    if uniform:
        size = torch.Size(shape).numel()
        value = torch.rand(skip + size, generator=_seeded(seed), dtype=torch.float64)[skip:]
        return (value * (2 * uniform) - uniform).view(shape)
    return None


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@functools.cache
def signs(count: int, size: int) -> torch.Tensor:
    """(count, size) random signs. NumPy never changes the numbers of RandomState."""
    return torch.from_numpy(np.random.RandomState(0).randint(0, 2, (count, size)) * 2.0 - 1)


class Vectors:
    """Features, and the loss and gradients that published code gives for them.

    vectors["s0"], ["t0"], ["x.<name>"], ["p.<name>"]: features of student and teacher, further inputs, parameters;
    ["loss"], ["gs0"], ["gp.<name>"]: the loss and the gradients. Of a large gradient there are sums with random signs.
    """

    def __init__(self, name: str):
        self.entry = INDEX[name]
        loss = self.entry["loss"]
        self.data = {"loss": torch.tensor(torch.nan if loss is None else loss, dtype=torch.float64)}
        with np.load(PARITY / "numbers.npz") as numbers:
            kept, self.sums = torch.from_numpy(numbers[name]), {}
        for key, said in self.entry["arrays"].items():
            said = dict(said)
            dtype, sums = said.pop("dtype", self.entry["dtype"]), said.pop("sums", None)
            value = made(**said)
            if value is None:
                shape = said["shape"] if sums is None else [sums]
                value, kept = kept.split([size := torch.Size(shape).numel(), len(kept) - size])
                value = value.view(shape)
            self.data[key] = value if sums else value.to(getattr(torch, dtype))
            self.sums[key] = sums
        assert not len(kept)
        self.students = [self[f"s{i}"].requires_grad_() for i in range(self._count("s"))]
        self.teachers = [self[f"t{i}"] for i in range(self._count("t"))]

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.data[key]

    def _count(self, letter: str) -> int:
        return sum(key[:1] == letter and key[1:].isdigit() for key in self.data)

    def assert_equal(self, loss, rtol=None, parameters=()) -> None:
        """Loss and gradients are the published ones; parameters: {published name: parameter}, or pairs of these."""
        assert loss.item() == pytest.approx(self["loss"].item(), rel=rtol or LOSS_DIGITS[self.entry["dtype"]])
        parameters = dict(parameters)
        names = [f"gs{i}" for i in range(len(self.students))] + [f"gp.{name}" for name in parameters]
        for name, grad in zip(names, torch.autograd.grad(loss, [*self.students, *parameters.values()]), strict=True):
            self.assert_gradient(name, grad)

    def assert_gradient(self, name: str, grad: torch.Tensor) -> None:
        """In the norm: each of the sums with random signs misses an error of any kind by chance alone."""
        expected, digits = self[name], GRADIENT_DIGITS[self.entry["dtype"]]
        if self.sums[name]:
            assert list(grad.shape) == self.entry["arrays"][name]["shape"], name
            grad = signs(self.sums[name], grad.numel()) @ grad.double().flatten()
        scale = expected.square().mean().sqrt().item()
        torch.testing.assert_close(grad, expected, rtol=digits, atol=digits * scale, msg=lambda m: f"{name}: {m}")
