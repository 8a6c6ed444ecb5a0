"""The queue of runs: a TOML file in the order of importance; every finished run is one row of results/runs.csv.

Workers take the first run that is neither finished nor another worker's. What is finished is never done again, on this
machine or another: the CSV says so. A run that was cut off goes on at its last saved step.
"""

from __future__ import annotations

import fcntl
import itertools
import math
import multiprocessing
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from . import scoring
from .cache import Cache
from .package import InputError, tomllib
from .rig import Run, load_student, measure_unit, train

RESULTS = Path(__file__).parent / "results"
_BASELINE = Run("", "labels", "none", 0.0, "constant", 750, 0)  # whose student units are measured at


@dataclass(frozen=True)
class Places:
    """Where large data lie."""

    folder: Path

    @property
    def mixtures(self) -> Path:
        return self.folder / "mixtures"

    @property
    def scored(self) -> Path:
        return self.folder / "scored"

    def cache(self, teacher: str) -> Path:
        return self.folder / "cache" / teacher

    def run(self, run: Run) -> Path:
        return self.folder / "runs" / run.name


def load(path: Path) -> list[Run]:
    """The runs of a queue in their order, each once."""
    with path.open("rb") as file:
        table = tomllib.load(file)
    unknown = set(table) - {"defaults", "runs"}
    if unknown:
        raise InputError(f"{path}: expected [defaults] and [[runs]], got {', '.join(sorted(unknown))}")
    runs = [run for entry in table["runs"] for run in _expand(table.get("defaults", {}) | entry, path)]
    return list(dict.fromkeys(runs))


def _expand(entry: dict[str, Any], path: Path) -> Iterator[Run]:
    """An entry has lists, or single values, of teachers, regimes, losses, weights, schedules, steps, seeds."""
    keys = ("seeds", "teachers", "regimes", "losses", "weights", "schedules", "steps", "lr")
    if unknown := set(entry) - set(keys):
        raise InputError(f"{path}: runs: {', '.join(sorted(unknown))} is none of {', '.join(keys)}")
    lists = [entry[key] if isinstance(entry[key], list) else [entry[key]] for key in keys]
    for seed, teacher, regime, loss, weight, schedule, steps, lr in itertools.product(*lists):
        if loss == "none":
            if regime == "labels":
                yield Run("", regime, loss, 0.0, "constant", steps, seed, lr)
            else:
                yield Run(teacher, regime, loss, 0.0, "constant", steps, seed, lr)
        else:
            yield Run(teacher, regime, loss, weight, schedule, steps, seed, lr)


def work_through(queue: Path, places: Places, jobs: int) -> None:
    """Until nothing is left that can be done."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(queue, places)) for _ in range(jobs)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def _work(queue: Path, places: Places) -> None:
    torch.set_num_threads(1)
    failed: set[Run] = set()
    while True:
        runs = load(queue)  # anew each time, so that a queue can be edited while it is worked through
        done = _done()
        if not _do_first([run for run in runs if key(run) not in done and run not in failed], places, failed):
            return


def _do_first(runs: list[Run], places: Places, failed: set[Run]) -> bool:
    """Do the first run that can be done; False if there is none."""
    for run in runs:
        if run.teacher and not (places.cache(run.teacher) / "manifest.json").exists():
            continue
        folder = places.run(run)
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / "lock") as is_mine:
            if not is_mine or key(run) in _done():
                continue
            try:
                _do(run, places)
            except Exception:  # one run's failure stops no other
                failed.add(run)
                (folder / "error.txt").write_text(traceback.format_exc())
                print(f"FAILED {run.name}\n{traceback.format_exc()}", flush=True)
            return True
    return False


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _do(run: Run, places: Places) -> None:
    begun = time.monotonic()
    cache_of = Cache(places.cache(run.teacher)) if run.teacher else None
    unit = math.nan if run.loss == "none" else _unit(run, places)
    folder = places.run(run)
    trained = train(run, cache_of, places.mixtures, unit, folder)
    clock = time.process_time()
    network = load_student(folder / "average.pt")
    rows = _scores(network, places)
    means = {column: sum(row[column] for row in rows) / len(rows) for column in scoring.COLUMNS}
    with _locked(RESULTS / "runs.csv"):
        table = scoring.read(RESULTS / "runs.csv")
        row = asdict(run) | {"unit": unit} | means | trained
        row |= {"score_seconds": time.process_time() - clock, "wall_seconds": time.monotonic() - begun}
        table.append(formatted(row))
        scoring.write(RESULTS / "runs.csv", table)
        _append_utterances(run, rows)
    print(f"{run.name}: {means['PESQ-WB']:.3f} PESQ, {means['SI-SDR (dB)']:.2f} dB", flush=True)


@torch.inference_mode()
def _scores(network: torch.nn.Module, places: Places) -> list[dict[str, float]]:
    mixtures = _dev(places.scored)
    return scoring.score(lambda noisy: network(torch.from_numpy(noisy)[None])[0].numpy(), mixtures)


@cache
def _dev(folder: Path) -> scoring.Scored:
    return scoring.Scored("dev", folder)


def _append_utterances(run: Run, rows: list[dict[str, float]]) -> None:
    """results/dev.csv: of every run and metric a row, a column per utterance."""
    table = scoring.read(RESULTS / "dev.csv")
    for column in scoring.COLUMNS:
        values = {f"u{index}": f"{row[column]:.3f}" for index, row in enumerate(rows)}
        table.append({"run": run.name, "metric": column, **values})
    scoring.write(RESULTS / "dev.csv", table)


def _unit(run: Run, places: Places) -> float:
    """Measured once per teacher and loss, with labels; kept in results/units.csv."""
    path = RESULTS / "units.csv"
    wanted = (run.teacher, run.loss)
    for row in scoring.read(path):
        if (row["teacher"], row["loss"]) == wanted:
            return float(row["unit"])
    baseline = places.run(_BASELINE) / "average.pt"
    if not baseline.exists():
        with _locked(baseline.parent / "lock", make=True):
            if not baseline.exists():
                train(_BASELINE, None, places.mixtures, math.nan, baseline.parent)
    measured = Run(run.teacher, "labels", run.loss, 1.0, "constant", 1, 0)
    unit = measure_unit(measured, Cache(places.cache(run.teacher)), places.mixtures, baseline)
    with _locked(path):
        table = scoring.read(path)
        table.append({"teacher": run.teacher, "loss": run.loss, "unit": f"{unit:.4g}"})
        scoring.write(path, table)
    return float(f"{unit:.4g}")


@contextmanager
def _locked(path: Path, make: bool = False) -> Iterator[None]:
    """One process at a time; the lock is a file beside, or the path itself."""
    lock = path if make else path.with_name(f".{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def formatted(row: dict[str, object]) -> dict[str, str]:
    return {name: f"{x:.5g}" if isinstance(x, float) else str(x) for name, x in row.items()}


def key(run: Run) -> tuple[str, ...]:
    """As the row of a finished run begins."""
    return tuple(formatted(asdict(run)).values())


def _done() -> set[tuple[str, ...]]:
    names = list(asdict(_BASELINE))
    return {tuple(row[name] for name in names) for row in scoring.read(RESULTS / "runs.csv")}


def run_of(row: dict[str, str]) -> Run:
    """The run of a row of results/runs.csv."""
    numbers = {"weight": float, "lr": float, "steps": int, "seed": int}
    return Run(**{name: numbers.get(name, str)(row[name]) for name in asdict(_BASELINE)})
