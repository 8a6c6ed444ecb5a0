"""What is measured: every loss of the library, and the ops tap and compress, with their inputs and their forms."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from abckd_kernels import backends, compress, tap_all, use_backend
from abckd_kernels.losses import table
from abckd_kernels.losses.entries import Entry

from .published import Case, case

SIZES = {  # by what a loss takes: shapes of student and teacher; features are (B, C, T, F) or (B, C, H, W)
    "dns": {  # a noise suppressor on 3.2 s segments
        "features": ((8, 32, 200, 64), (8, 64, 200, 64)),
        "logits": ((512, 32000),) * 2,
        "spectra": ((16, 257, 1000),) * 2,
        "waveforms": ((16, 160000),) * 2,
    },
    "vision": {"features": ((32, 64, 56, 56), (32, 256, 56, 56)), "logits": ((1024, 1000),) * 2},  # ResNets, 224 x 224
    "large": {  # dns with four times the batch
        "features": ((32, 32, 200, 64), (32, 64, 200, 64)),
        "logits": ((2048, 32000),) * 2,
        "spectra": ((64, 257, 1000),) * 2,
        "waveforms": ((64, 160000),) * 2,
    },
    "small": {"features": ((1, 16, 50, 32),) * 2},  # what Python and dispatch cost
    "tiny": {  # of the benchmark's own tests
        "features": ((4, 32, 100, 16), (4, 64, 100, 16)),
        "logits": ((64, 1000),) * 2,
        "spectra": ((2, 65, 50),) * 2,
        "waveforms": ((2, 16000),) * 2,
    },
}
LAYOUTS = ("contiguous", "channels_last")
Inputs = Tensor | list[Tensor]


class Op(NamedTuple):
    """As much of a table's entry as an op has, that one would not call a loss."""

    name: str
    function: Callable[[list[Tensor], list[Tensor]], Tensor]
    inputs: str = "features"


def _tap(features: list[Tensor], _: list[Tensor]) -> Tensor:
    _, maps, means = tap_all(features)
    return sum(x.sum() for x in (*maps, *means))


OPS = (Op("tap", _tap), Op("compress", lambda student, teacher: compress(student, teacher)[0].sum()))


@dataclass(frozen=True)
class Setup:
    """dtype, size, layout and device of inputs: what a row of results is about, beside the loss."""

    dtype: torch.dtype = torch.float32
    size: str = "dns"
    layout: str = "contiguous"
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}, {self.size}, {self.layout}, {self.device}"


@dataclass(frozen=True)
class Subject:
    """A loss or op, and how it is measured."""

    entry: Entry | Op
    case: Case

    @property
    def name(self) -> str:
        return self.entry.name

    def why_not(self, setup: Setup) -> str | None:
        """Why there is nothing to measure of this, or None."""
        if self.entry.inputs not in SIZES[setup.size]:
            return f"takes {self.entry.inputs}, of which there is no size {setup.size!r}"
        if not self.case.half and setup.dtype in (torch.bfloat16, torch.float16):
            return "has no form in half precision"
        if setup.layout != "contiguous" and (self.entry.inputs != "features" or self.name == "compress"):
            return "its inputs have one layout"
        return None

    @property
    def in_network(self) -> bool:
        return self.case.in_network and self.entry.inputs == "features"

    def inputs(self, setup: Setup, seed: int = 0, batch: int | None = None) -> tuple[Inputs, Inputs]:
        """(student, which requires gradients, teacher), each a tensor or a list of them; at most `batch` samples."""
        generator = torch.Generator().manual_seed(seed)
        usual = SIZES[setup.size][self.entry.inputs]
        student, teacher = self.case.shapes(*((min(shape[0], batch or shape[0]), *shape[1:]) for shape in usual))

        def make(shape, requires_grad):
            if isinstance(shape, list):
                return [make(one, requires_grad) for one in shape]
            if self.entry.inputs == "spectra":
                wide = torch.promote_types(setup.dtype, torch.complex64)
                x = torch.randn(shape, dtype=wide, generator=generator)
            else:
                x = torch.randn(shape, generator=generator).to(setup.dtype)
            if setup.layout == "channels_last":
                x = x.movedim(1, -1).contiguous().movedim(-1, 1)
            return x.to(setup.device).requires_grad_(requires_grad)

        return make(student, True), make(teacher, False)

    def extra(self, student: Inputs, teacher: Inputs) -> dict:
        return self.case.extra(student, teacher) if self.case.extra else {}

    def ours(self, student: Inputs, teacher: Inputs, tapped: bool = False) -> Callable[..., Tensor]:
        """Our form for these inputs, parameters in float32 at least; `tapped`: for a Distiller that can tap."""
        maker = (self.case.tapped if tapped else None) or self.case.ours
        if maker is None:
            return partial(self.entry.function, **self.case.options)
        like = as_list(student)[0]
        return _made(maker, student, teacher).to(like.device, torch.promote_types(like.dtype, torch.float32))

    def published(self, student: Inputs, teacher: Inputs) -> Callable[..., Tensor]:
        """The published form for these inputs, parameters of their dtype."""
        if self.case.ours is None:
            return self.case.published
        like = as_list(student)[0]
        return _made(self.case.published, student, teacher).to(like.device, like.dtype)


def _made(maker: Callable[..., nn.Module], student: Inputs, teacher: Inputs) -> nn.Module:
    """What has learned parts, always the same."""
    torch.manual_seed(0)
    return maker(student, teacher)


@cache
def subjects() -> dict[str, Subject]:
    """All losses of the table, then the ops, by name. Raises LookupError for a loss without its published form."""
    found = {entry.name: (entry, case(entry.name)) for entry in (*table(), *OPS)}
    for name, (_, how) in found.items():
        if how is None:
            raise LookupError(f"benchmarks/published has no {name}")
    return {name: Subject(entry, how) for name, (entry, how) in found.items()}


def able(device: str) -> list[str]:
    """Backends that serve abc_loss on the device, in the library's order; the reference not on GPUs."""
    names = [name for name in backends.PREFERENCE if name != "reference" or device == "cpu"]
    ops = [op for op in backends.ops() if op.startswith(("tap_", "compress_"))]
    return [name for name in names if all(backends.why_not(op, name, device) is None for op in ops)]


def in_force(backend: str | None):
    """A context in which `backend` serves; None: as is."""
    return contextlib.nullcontext() if backend is None else use_backend(backend)


def as_list(x: Inputs) -> list[Tensor]:
    return [x] if isinstance(x, Tensor) else list(x)


def parameters(form: Callable) -> list[Tensor]:
    return [x for x in form.parameters() if x.requires_grad] if isinstance(form, nn.Module) else []
