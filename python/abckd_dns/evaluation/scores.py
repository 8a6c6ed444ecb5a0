"""The values of every metric, for every system and example, whatever becomes of one of them."""

from __future__ import annotations

import math
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..constants import SAMPLE_RATE
from ..data.mixtures import Mixtures
from ..errors import InputError
from .metrics import METRICS
from .recordings import Recordings
from .systems import UNPROCESSED, Output, System

Scores = dict[str, dict[str, list[float]]]  # system -> metric -> one value per example

_DEATHS = 3  # of worker processes, one after another, that end an evaluation


class Row(NamedTuple):
    """What is known of a system on an example."""

    values: dict[str, float]
    """By column; NaN where undefined."""
    factor: float = math.nan
    """Real-time factor."""
    delay: float = math.nan
    """Seconds that were taken off."""
    remark: str = ""
    """Why values are undefined."""


@dataclass
class Result:
    """Of an example: a row per system, or why the example cannot be used."""

    rows: dict[str, Row] = field(default_factory=dict)
    failure: str = ""


class Scorer(Dataset):
    """Example by example, the values of every system."""

    def __init__(
        self, systems: dict[str, System], examples: Recordings | Mixtures, metrics: list[str], dry: float
    ) -> None:
        self.systems, self.examples, self.metrics, self.dry = systems, examples, metrics, dry

    @property
    def columns(self) -> list[str]:
        return [column for name in self.metrics for column in METRICS[name].columns]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Result:
        name = self.examples.name(index)
        try:
            example = self.examples[index]
        except Exception as error:  # whatever a bad file leads to
            return Result(failure=_describe(error))
        noisy, clean = example["noisy"], example.get("clean")
        rows = {UNPROCESSED: self._measure(Output(noisy), noisy, clean, dry=0.0)}
        for system_name, system in self.systems.items():
            try:
                rows[system_name] = self._measure(system.run(noisy, name), noisy, clean, self.dry)
            except Exception as error:  # whatever a foreign network may raise
                rows[system_name] = Row(dict.fromkeys(self.columns, math.nan), remark=_describe(error))
        return Result(rows)

    def _measure(self, output: Output, noisy: Tensor, clean: Tensor | None, dry: float) -> Row:
        length = len(output.waveform)
        estimate = output.waveform
        if dry:
            estimate = (1 - dry) * estimate + dry * noisy[:length]
        values, remarks = {}, {}
        for name in self.metrics:
            found, why = METRICS[name].measure(estimate, None if clean is None else clean[:length])
            values |= found
            if why:
                remarks[why] = None
        return Row(
            values,
            math.nan if output.seconds is None else output.seconds * SAMPLE_RATE / max(1, length),
            math.nan if output.delay is None else output.delay / SAMPLE_RATE,
            "; ".join(remarks),
        )


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def score_all(scorer: Scorer, indices: Iterable[int], workers: int) -> Iterator[tuple[int, Result]]:
    """The results of the examples, in order. What kills a worker process is found, and is one example's failure.

    Raises InputError if worker processes die one after another.
    """
    left, deaths = deque(indices), 0
    while left:
        try:
            for result in _loader(scorer, list(left), workers):
                yield left.popleft(), result
                deaths = 0
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
        # One of those in work; the first is tried alone, so that no other pays for it.
        index = left.popleft()
        try:
            (result,) = _loader(scorer, [index], 1)
            deaths = 0
        except RuntimeError as error:
            deaths += 1
            result = Result(failure=f"a worker process died, perhaps for want of memory: {error}")
        yield index, result
        if deaths == _DEATHS:
            raise InputError(f"--workers: {_DEATHS} worker processes died, one after another; {result.failure}")


def _loader(scorer: Scorer, indices: list[int], workers: int) -> DataLoader:
    # Fresh processes, not forks: a fork of a process that has used a GPU cannot use it.
    context = "spawn" if workers else None
    return DataLoader(
        scorer,
        sampler=indices,
        batch_size=None,
        num_workers=min(workers, len(indices)),
        multiprocessing_context=context,
        worker_init_fn=_leave_interruptions_to_the_main_process,
        collate_fn=_as_it_is,
    )


def _leave_interruptions_to_the_main_process(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_it_is(result: Result) -> Result:
    return result
