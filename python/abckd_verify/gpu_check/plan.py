"""The parts of a check in their order, what matters most first; their items, and the seconds that they should take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .. import losses
from ..ops import SPECS
from . import parts
from .setting import Setting, serves

FEW = "float32"  # of losses, where one dtype has to do at first


@dataclass(frozen=True)
class Part:
    """name: for --part. run: what an item does. items: of (backend, device), the most important first. start, each: the
    seconds that a worker takes to begin, and an item, on an H100 with 16 processors: estimates, to order and to share
    by. processes: workers at once. once: for the first backend only.
    """

    name: str
    run: Callable[[Setting, str], dict]
    items: Callable[[str, str], list[str]]
    start: float
    each: float
    processes: int = 1
    once: bool = False

    def planned(self, backend: str, device: str) -> float:
        return self.start + self.each * len(self.items(backend, device)) / self.processes


def _cases(of: str, first: bool | None = None) -> Callable[[str, str], list[str]]:
    """Items of every op's cases. first: only the first of each dtype and layout, or only the others."""

    def items(backend: str, device: str) -> list[str]:
        found = []
        for spec in SPECS.values():
            if not serves(backend, spec.name, device):
                continue
            seen: set = set()
            for case in getattr(spec, of):
                new = (case.dtype, case.layout) not in seen
                seen.add((case.dtype, case.layout))
                if first is None or new == first:
                    found.append(f"{spec.name}/{case}")
        return found

    return items


def _losses(*dtypes: str) -> Callable[[str, str], list[str]]:
    return lambda backend, device: [f"{name}/{dtype}" for dtype in dtypes for name in losses.by_name()]


def _one_case_per_op(backend: str, device: str) -> list[str]:
    return [f"{spec.name}/{spec.timed[0]}" for spec in SPECS.values() if serves(backend, spec.name, device)]


def _ops(backend: str, device: str) -> list[str]:
    return [name for name in SPECS if serves(backend, name, device)]


ALL = parts.dtype_names(losses.DTYPES)
HALF = [name for name in ALL if name != FEW]
PARTS = (
    # What Triton compiles, it keeps on disk: the parts behind find it there.
    Part("compile ops", parts.compile_op, _cases("cases", first=True), 8, 2.5, processes=8),
    Part("compile times", parts.compile_timed, _cases("timed"), 8, 2.5, processes=8),
    Part("compile losses", parts.compile_loss, _losses(FEW), 8, 2.5, processes=8, once=True),
    Part("ops", parts.op, _cases("cases", first=True), 8, 0.06),
    Part("losses", parts.loss, _losses(*ALL), 8, 0.15, once=True),
    Part("graphs", parts.graph, _losses(FEW), 8, 0.15, once=True),
    Part("bandwidth", parts.bandwidth, lambda backend, device: ["copy"], 6, 0.5, once=True),
    Part("times", parts.times, _cases("timed"), 6, 0.4),
    Part("repeats", parts.repeats, _cases("cases", first=True), 6, 0.1),
    Part("repeated losses", parts.repeated_loss, _losses(FEW), 6, 0.1, once=True),
    Part("second device", parts.second_device, _losses(FEW), 8, 0.3, once=True),
    Part("other cases", parts.op, _cases("cases", first=False), 8, 1.5, processes=8),
    Part("loss times", parts.loss_times, _losses(FEW), 6, 0.4, once=True),
    Part("half graphs", parts.graph, _losses(*HALF), 8, 0.2, once=True),
    Part("compiled times", parts.compiled_times, _one_case_per_op, 10, 12, once=True),
    Part("memcheck", parts.memcheck, _ops, 2, 15),
    Part("racecheck", parts.racecheck, _ops, 2, 20),
)
BY_NAME = {part.name: part for part in PARTS}


@dataclass(frozen=True)
class Task:
    """A part for a backend; "auto": whichever the library chooses for each op."""

    part: Part
    backend: str
    device: str

    @property
    def items(self) -> list[str]:
        backend = self.backend
        return self.part.items(backend, self.device)

    @property
    def planned(self) -> float:
        return self.part.planned(self.backend, self.device)

    def __str__(self) -> str:
        return f"{self.part.name} ({self.backend})"


def tasks(setting: Setting, backends: list[str], only: list[str] | None = None) -> list[Task]:
    """All parts for these backends, or those whose name is one of `only`."""
    found = []
    for part in PARTS:
        if only and part.name not in only:
            continue
        for backend in ["auto"] if part.once else backends:
            if part.name in ("compile ops", "compile times") and backend != "triton":
                continue
            task = Task(part, backend, setting.device)
            if task.items:
                found.append(task)
    return found


def covered(found: list[Task]) -> tuple[set[str], set[str]]:
    """Ops and losses that some task checks the results of."""
    ops = {item.partition("/")[0] for task in found if task.part.run is parts.op for item in task.items}
    of_losses = {item.partition("/")[0] for task in found if task.part.run is parts.loss for item in task.items}
    return ops, of_losses
