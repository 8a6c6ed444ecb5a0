"""Every loss of the library with inputs of its own, small: what is checked of them on a device."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from abckd_kernels import use_backend
from abckd_kernels.losses import build, table
from abckd_kernels.losses.entries import Entry

from . import inputs

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 4 * 2.0**-7, torch.float16: 4 * 2.0**-10}  # of a gradient, relative
LAYERS = ((6, 12, 10), (8, 12, 10))  # (C, T, F) of a student's and a teacher's layer
OTHERS = {"logits": (12, 40), "spectra": (3, 33, 20), "waveforms": (3, 4000), "hidden": (12, 16)}
CLASSES = 40  # of the heads of hidden states


class Problem:
    """A loss, its inputs and, where it has learned parts, always the same ones."""

    def __init__(self, entry: Entry, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0):
        self.entry, self.device = entry, torch.device(device)
        self.student, self.teacher, self.extra = self._inputs(dtype, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            given = (self.student, self.teacher) if entry.inputs == "features" else ((), ())
            self.module: nn.Module = build(entry.name, *given)
        self.module.to(self.device)

    def _inputs(self, dtype, seed) -> tuple[list[Tensor], list[Tensor], dict]:
        needs, batch = self.entry.needs, 4
        layers = 2 if needs.layers in ("chain", "any") else 1
        if self.entry.inputs == "features":
            student, teacher = (
                [inputs.feature((batch, *shape), torch.float64, seed + 10 * side + k) for k in range(layers)]
                for side, shape in enumerate(self._shapes())
            )
        else:
            shape = OTHERS[self.entry.inputs]
            student, teacher = ([inputs.feature(shape, torch.float64, seed + 10 * side)] for side in range(2))
            if self.entry.inputs == "spectra":
                dtype = torch.complex64 if dtype == torch.float32 else dtype
                pairs = [inputs.feature((*shape, 2), torch.float64, seed + 10 * side) for side in range(2)]
                student, teacher = ([torch.view_as_complex(x) if dtype.is_complex else x] for x in pairs)
        extra = {}
        if needs.labels:
            extra["labels"] = torch.arange(len(student[0])) % student[0].shape[1]
        if self.entry.inputs == "hidden":
            heads = {f"{side}_weight": seed + 40 + k for k, side in enumerate(("student", "teacher"))}
            width = OTHERS["hidden"][-1]
            extra = {name: inputs.feature((CLASSES, width), torch.float64, k).to(dtype) for name, k in heads.items()}
        if needs.clean:
            extra["clean"] = inputs.feature(student[0].shape, torch.float64, seed + 30).to(dtype)

        def placed(features, requires_grad):
            return [x.to(self.device, dtype).requires_grad_(requires_grad) for x in features]

        return placed(student, True), placed(teacher, False), {k: x.to(self.device) for k, x in extra.items()}

    def _shapes(self):
        """Of equal channels, unless the loss is told how many there are: some compare channel by channel."""
        return LAYERS if self.entry.needs.channels else (LAYERS[0], LAYERS[0])

    def loss(self) -> Tensor:
        several = self.entry.inputs == "features" and (len(self.student) > 1 or self.entry.needs.layers == "any")
        given = (self.student, self.teacher) if several else (self.student[0], self.teacher[0])
        return self.module(*given, *self.extra.values())

    def leaves(self) -> list[Tensor]:
        return [*self.student, *(x for x in self.module.parameters() if x.requires_grad)]

    def step(self, scale: float = 1.0) -> list[Tensor]:
        """The loss and the gradients of everything that has one."""
        loss = self.loss()
        leaves = self.leaves()
        found = torch.autograd.grad(loss * scale, leaves, allow_unused=True, materialize_grads=True)
        return [loss.detach(), *found]

    def exact(self) -> Problem:
        """The same in float64 on the CPU."""

        def wide(x):
            return x.detach().cpu().to(torch.promote_types(x.dtype, torch.float64))

        other = copy.copy(self)
        other.device, other.module = torch.device("cpu"), copy.deepcopy(self.module).cpu().double()
        other.student = [wide(x).requires_grad_() for x in self.student]
        other.teacher = [wide(x) for x in self.teacher]
        other.extra = {k: wide(x) if x.is_floating_point() else x.cpu() for k, x in self.extra.items()}
        return other


def check(entry: Entry, dtype: torch.dtype, device: str = "cpu") -> dict[str, float]:
    """Loss and gradients of the student's features, by the backend in force, against PyTorch's in float64.

    Returns both relative errors. Raises AssertionError where one is larger than rounding.
    """
    problem = Problem(entry, dtype, device)
    scale = 2.0**10 if dtype == torch.float16 else 1.0  # a mean's gradient is small
    ours = problem.step(scale)
    with use_backend("reference"):
        exact = problem.exact().step(scale)
    count = len(problem.student)
    errors = {
        "loss": _apart(ours[:1], exact[:1]), "gradient": _apart(ours[1 : 1 + count], exact[1 : 1 + count]),
    }  # fmt: skip
    for what, error in errors.items():
        assert error <= ROUNDING[dtype], f"{what} is off by {error:.1e}, allowed {ROUNDING[dtype]:.1e}"
    return errors


def _apart(ours: list[Tensor], exact: list[Tensor]) -> float:
    ours, exact = (torch.cat([_flat(x) for x in tensors]) for tensors in (ours, exact))
    return ((ours - exact).norm() / exact.norm().clamp(min=1e-30)).item()


def _flat(x: Tensor) -> Tensor:
    x = torch.view_as_real(x) if x.is_complex() else x
    return x.detach().cpu().double().flatten()


def by_name() -> dict[str, Entry]:
    return {entry.name: entry for entry in table()}
