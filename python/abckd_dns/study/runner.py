"""The command `study`: stage after stage, the runs of a stage side by side, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..options import TrainingOptions
from ..training.runs import check_same_run, is_finished
from . import report
from .config import Config, load
from .data import data_folder, format_minutes
from .job import student_options, teacher_options, work
from .options import StudyOptions
from .results import Results, choose_finalists, collect, equal_loss_shares, final_seeds, grid_means, read, write
from .runs import (
    NOISY,
    TEACHER,
    Run,
    dry_file,
    final_runs,
    grid_runs,
    mixtures_folder,
    noise_runs,
    scores_file,
    unit_file,
    unit_runs,
)

_GATES = {"SI-SDR (dB)": 5.0, "PESQ-WB": 0.4, "STOI": 0.0}  # what a teacher must add to the noisy input, at least


def study(options: StudyOptions) -> None:
    config = load(options.config)
    if options.report_only:
        report.write(config, read(config))
        print(f"written: {config.results}")
        return
    start = time.monotonic()
    try:
        _Study(config, options).run()
    finally:
        print(f"{(time.monotonic() - start) / 60:.1f} minutes")


@dataclass(frozen=True)
class _Job:
    name: str
    kind: str
    run: Run | None
    share: float
    log: Path
    is_done: Callable[[], bool]


class _Study:
    def __init__(self, config: Config, options: StudyOptions) -> None:
        self.config, self.options = config, options
        self.failed: list[str] = []

    def run(self) -> None:
        config = self.config
        folder = data_folder(config)
        if config.data.folder is None:
            print(f"speech and noise: {folder}\n{format_minutes(folder)}")
        self._must(NOISY, lambda: self._has_scores(NOISY, "dev", "test"))
        if config.data.prepared_count:
            self._must("prepared", mixtures_folder(config).exists)
        self._must(TEACHER, self._has_teacher)
        self._print_gates()

        noise = noise_runs(config)
        first = [self._train(run) for run in noise if run.seed == config.noise_seeds[0]]
        self._stage("first baselines", first, of_all=True)  # the units are measured with them
        self._train_and_test("seed noise", noise)
        print(report.format_seed_noise(config, collect(config, noise)))

        wanted = {run.system for run in grid_runs(config) if self._is_wanted(run.name)}
        units = [run for run in unit_runs(config) if run.system in wanted]
        units = [self._job(run, "unit", unit_file(config, run.name).exists) for run in units]
        self._stage("units of KD weights", units, of_all=True)
        grid = [run for run in grid_runs(config) if run.weight is None or self._has_unit(run.system)]
        self._stage("grid of KD weights", [self._train(run) for run in grid])
        results = collect(config, grid)
        for regime in config.regimes:
            for system in config.systems(regime):
                means = grid_means(config, results, regime, system)
                cells = (f"{'' if weight is None else f'{weight:g}: '}{value:.4f}" for weight, value in means.items())
                print(f"{regime}, {system.name}, {config.evaluation.select}: {', '.join(cells) or 'not finished'}")

        finalists = choose_finalists(config, results)
        final = final_runs(config, finalists)
        self._train_and_test("finalists", final)
        runs = list(dict.fromkeys([*noise, *grid, *final]))
        results = collect(config, runs)
        self._stage("dry mix at equal loss", list(self._dry(results)))

        results = collect(config, runs)
        write(config, results)
        report.write(config, read(config))  # what is committed: a later --report-only makes the same
        print(f"written: {config.results}")
        if self.failed:
            raise InputError(f"{len(self.failed)} failed: {', '.join(self.failed)}; the same command tries them again")

    def _must(self, kind: str, is_done: Callable[[], bool]) -> None:
        """Without this there is no study."""
        job = _Job(kind, kind, None, 0.0, self.config.runs / kind / f"{kind}.log", is_done)
        self._stage(kind, [job], of_all=True)
        if self.failed:
            raise InputError(f"{kind} failed, its log: {job.log}")

    def _train_and_test(self, name: str, runs: list[Run]) -> None:
        self._stage(name, [self._train(run) for run in runs])
        self._stage(f"{name}, test", [self._test(run) for run in runs if self._has_scores(run.name, "dev")])

    def _has_teacher(self) -> bool:
        has_scores = self._has_scores(TEACHER, "dev", "test")
        return has_scores and self._is_trained(TEACHER, lambda: teacher_options(self.config))

    def _is_trained(self, name: str, options: Callable[[], TrainingOptions]) -> bool:
        """Raises InputError if the run was one with other options: its scores would be taken for those of another."""
        folder = self.config.runs / name
        if not is_finished(folder):
            return False
        check_same_run(folder, options().model_dump())
        return True

    def _train(self, run: Run) -> _Job:
        def is_done() -> bool:
            has_scores = self._has_scores(run.name, "dev") and dry_file(self.config, run.name).exists()
            return has_scores and self._is_trained(run.name, lambda: student_options(self.config, run))

        return self._job(run, "student", is_done)

    def _test(self, run: Run, share: float = 0.0) -> _Job:
        return self._job(run, "test", scores_file(self.config, run.name, "test", share).exists, share)

    def _dry(self, results: Results) -> Iterator[_Job]:
        finalists = choose_finalists(self.config, results)
        wanted = set()
        for (regime, system), (own, others) in equal_loss_shares(self.config, results, finalists).items():
            wanted |= {(regime, system, own), (regime, self.config.baseline[regime], others)}
        for regime, system, share in sorted(wanted):
            if share:
                runs = final_seeds(self.config, results, regime, system, finalists[regime][system])
                yield from (self._test(run, share) for run in runs)

    def _job(self, run: Run, kind: str, is_done: Callable[[], bool], share: float = 0.0) -> _Job:
        log = self.config.runs / run.name / f"{kind}{f'_dry{share:g}' if share else ''}.log"
        return _Job(run.name, kind, run, share, log, is_done)

    def _has_scores(self, run: str, *parts: str) -> bool:
        return all(scores_file(self.config, run, part).exists() for part in parts)

    def _is_wanted(self, run: str) -> bool:
        return not self.options.only or any(part in run for part in self.options.only)

    def _has_unit(self, system: str) -> bool:
        """Without one its students cannot be trained; why is printed by then."""
        return all(unit_file(self.config, run.name).exists() for run in unit_runs(self.config) if run.system == system)

    def _print_gates(self) -> None:
        results = collect(self.config, [])
        print("teacher minus noisy input, test set:")
        for metric in results.metrics:
            values = (results.test[system, 0.0][metric] for system in (TEACHER, NOISY))
            gain = float(np.nanmean(np.subtract(*values)))
            gate = _GATES.get(metric)
            verdict = "" if gate is None else f" (at least {gate:g}: {'yes' if gain >= gate else 'NO'})"
            print(f"  {metric} {gain:+.3f}{verdict}")
            if gate is not None and gain < gate:
                print(
                    f"  warning: a teacher that adds less than {gate:g} {metric} has little to teach", file=sys.stderr
                )

    def _stage(self, name: str, jobs: Iterable[_Job], of_all: bool = False) -> None:
        """Do jobs that are not done; those that fail are said and noted."""
        jobs = list({job.log: job for job in jobs}.values())  # noise, grid and finalists have runs in common
        jobs = [job for job in jobs if of_all or self._is_wanted(job.name)]
        left = [job for job in jobs if not job.is_done()]
        print(f"{name}: {len(jobs) - len(left)} of {len(jobs)} done", flush=True)
        for count, (job, seconds, failure) in enumerate(self._side_by_side(left), start=1):
            if failure:
                self.failed.append(job.name)
            print(f"[{count}/{len(left)}] {job.name} {seconds:.0f} s{failure}", flush=True)

    def _side_by_side(self, jobs: list[_Job]) -> Iterator[tuple[_Job, float, str]]:
        """Each job when it has ended, with its seconds and what went wrong ("" if nothing).

        When this process is asked to end, its jobs are, and they save what they have.
        """
        # Forked from a process that has done the imports, also those that are done late, and no computation: they take
        # longer than a small job.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([work.__module__, "torch.utils.tensorboard", "pesq"])
        waiting, running = list(reversed(jobs)), {}
        with _signals_as_exit():
            try:
                while waiting or running:
                    while waiting and len(running) < self.options.jobs:
                        job = waiting.pop()
                        job.log.parent.mkdir(parents=True, exist_ok=True)
                        arguments = (self.options.config, job.kind, job.run, job.share, job.log)
                        process = context.Process(target=work, args=arguments)
                        process.start()
                        running[process.sentinel] = process, job, time.monotonic()
                    for ended in multiprocessing.connection.wait(list(running)):
                        process, job, start = running.pop(ended)
                        process.join()
                        yield job, time.monotonic() - start, _failure(process.exitcode, job)
            finally:
                for process, _, _ in running.values():
                    process.terminate()
                for process, _, _ in running.values():
                    process.join()


def _failure(code: int, job: _Job) -> str:
    if code == 0 and job.is_done():
        return ""
    text = job.log.read_text(errors="replace") if job.log.exists() else ""
    lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return f" FAILED (exit {code}): {lines[-1] if lines else 'no output'}; log: {job.log}"


@contextmanager
def _signals_as_exit() -> Iterator[None]:
    def leave(number: int, _) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
