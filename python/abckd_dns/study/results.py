"""What is known of the runs of a study, in CSV files that are small enough to commit.

dev.csv                        a row per run: means over the development set, attention entropy
units.csv                      of each system: the KD weight that the grid's weights are multiples of
dry.csv                        objective on the development set by share of the noisy input in the output
attention.csv                  a row per pair of layers of a run
test/<regime>/<system>.csv     a row per run, share and test utterance; test/noisy.csv and test/teacher.csv likewise
Tables and plots are made of these alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import InputError
from .config import Config, Regime, System
from .runs import NOISY, TEACHER, Run, dry_file, file_name, scores_file, unit_file, unit_runs
from .tables import number, read_rows, write_rows

Finalists = dict[Regime, dict[str, float | None]]  # systems of a regime and their weights

OBJECTIVE = "objective"
ENTROPY = "attention entropy"


@dataclass
class Results:
    """dev         means by column, of every run
    units        KD weight by system, of those with a grid
    dry          objective by share of the noisy input, of every run
    attention    (student layer, teacher layer): attention, of every run that has it
    test         (run or TEACHER or NOISY, share): column: values (utterances,)
    """

    dev: dict[Run, dict[str, float]] = field(default_factory=dict)
    units: dict[str, float] = field(default_factory=dict)
    dry: dict[Run, dict[float, float]] = field(default_factory=dict)
    attention: dict[Run, dict[tuple[str, str], float]] = field(default_factory=dict)
    test: dict[tuple[Run | str, float], dict[str, np.ndarray]] = field(default_factory=dict)

    @property
    def metrics(self) -> list[str]:
        return list(self.test[NOISY, 0.0])

    def table(self, runs: Iterable[Run | str], metric: str, share: float = 0.0) -> np.ndarray:
        """Test values (runs, utterances)."""
        return np.stack([self.test[run, share][metric] for run in runs])


def collect(config: Config, runs: Iterable[Run]) -> Results:
    """What the folders of runs hold."""
    results = Results()
    for run in runs:
        scores = scores_file(config, run.name, "dev")
        if not (scores.exists() and dry_file(config, run.name).exists()):
            continue
        objectives = {float(row["share"]): number(row[OBJECTIVE]) for row in read_rows(dry_file(config, run.name))}
        results.dry[run] = objectives
        # Rounded as it is written, so that the same weights are best to the runner and to a later report.
        means = {column: round(float(np.nanmean(values)), 4) for column, values in _columns(scores).items()}
        results.dev[run] = {**means, OBJECTIVE: objectives[0.0], ENTROPY: math.nan}
        attention = config.runs / run.name / "attention.csv"
        if attention.exists():
            rows = read_rows(attention)
            results.attention[run] = {(r["student_layer"], r["teacher_layer"]): number(r["attention"]) for r in rows}
            results.dev[run][ENTROPY] = entropy(results.attention[run])
        for share in (0.0, *config.final.dry_shares):
            if (scores := scores_file(config, run.name, "test", share)).exists():
                results.test[run, share] = _columns(scores)
    measured = {run.system: unit_file(config, run.name) for run in unit_runs(config)}
    for system in config.system:
        if system.unit is not None:
            results.units[system.name] = system.unit
        elif system.name in measured and measured[system.name].exists():
            results.units[system.name] = number(read_rows(measured[system.name])[0]["unit"])
    for name in (NOISY, TEACHER):
        if (scores := scores_file(config, name, "test")).exists():
            results.test[name, 0.0] = _columns(scores)
    return results


def _columns(path: Path) -> dict[str, np.ndarray]:
    rows = read_rows(path)
    return {key: np.array([number(row[key]) for row in rows]) for key in rows[0] if key != "example"}


def entropy(attention: dict[tuple[str, str], float]) -> float:
    """Mean over student layers of the entropy over teacher layers, 1 for equal weights, 0 for a single layer.

    Of an attention that is a distribution over student layers (AFD's): over teacher layers of that over student layers.
    """
    by_student = defaultdict(list)
    for (student, _), weight in attention.items():
        by_student[student].append(weight)
    weights = np.array(list(by_student.values()))
    if not np.allclose(weights.sum(axis=1), 1, atol=0.01):
        weights = weights.T
    if weights.shape[1] == 1:
        return 0.0
    surprisal = np.log(np.divide(1, weights, out=np.ones_like(weights), where=weights > 0))
    return float((weights * surprisal).sum(axis=1).mean() / np.log(weights.shape[1]))


def write(config: Config, results: Results) -> None:
    folder = config.results
    write_rows(folder / "dev.csv", [_key(run) | means for run, means in results.dev.items()], decimals=4)
    write_rows(folder / "units.csv", [{"system": name, "unit": f"{unit:g}"} for name, unit in results.units.items()])
    shares = [
        _key(run) | {"share": f"{share:g}", OBJECTIVE: value}
        for run, objectives in results.dry.items()
        for share, value in objectives.items()
    ]
    write_rows(folder / "dry.csv", shares, decimals=5)
    attention = [
        _key(run) | {"student_layer": student, "teacher_layer": teacher, "attention": weight}
        for run, weights in results.attention.items()
        for (student, teacher), weight in weights.items()
    ]
    write_rows(folder / "attention.csv", attention)
    by_file = defaultdict(list)
    for (run, share), columns in results.test.items():
        key = {} if isinstance(run, str) else {name: _key(run)[name] for name in ("weight", "steps", "seed")}
        by_file[_test_file(folder, run)] += [
            {**key, "share": f"{share:g}", "example": index, **dict(zip(columns, map(float, values), strict=True))}
            for index, values in enumerate(zip(*columns.values(), strict=True))
        ]
    for path, rows in by_file.items():
        write_rows(path, rows)


def read(config: Config) -> Results:
    """What `write` wrote."""
    folder, results = config.results, Results()
    if not (folder / "dev.csv").is_file():
        raise InputError(f"--report-only: {folder} has no results of a study (dev.csv, test/, ...)")
    for row in read_rows(folder / "dev.csv"):
        run = _run(row)
        results.dev[run] = {key: number(value) for key, value in row.items() if key not in _key(run)}
    results.units = {row["system"]: number(row["unit"]) for row in read_rows(folder / "units.csv")}
    for row in read_rows(folder / "dry.csv"):
        results.dry.setdefault(_run(row), {})[float(row["share"])] = number(row[OBJECTIVE])
    for row in read_rows(folder / "attention.csv"):
        pair = row["student_layer"], row["teacher_layer"]
        results.attention.setdefault(_run(row), {})[pair] = number(row["attention"])
    names = {file_name(system.name): system.name for system in config.system}
    for path in sorted((folder / "test").rglob("*.csv")):
        groups = defaultdict(list)
        for row in read_rows(path):
            run: Run | str = path.stem
            if path.parent != folder / "test":
                if path.stem not in names:  # of a system that is no longer in the configuration
                    continue
                run = _run({"regime": path.parent.name, "system": names[path.stem], **row})
            groups[run, float(row["share"])].append(row)
        for key, rows in groups.items():
            columns = [name for name in rows[0] if name not in ("weight", "steps", "seed", "share", "example")]
            results.test[key] = {name: np.array([number(row[name]) for row in rows]) for name in columns}
    return results


def _key(run: Run) -> dict:
    weight = "" if run.weight is None else f"{run.weight:g}"
    return {"regime": run.regime, "system": run.system, "weight": weight, "steps": run.steps, "seed": run.seed}


def _run(row: dict) -> Run:
    weight = float(row["weight"]) if row["weight"] else None
    return Run(row["regime"], row["system"], weight, int(row["steps"]), int(row["seed"]))


def _test_file(folder: Path, run: Run | str) -> Path:
    if isinstance(run, str):
        return folder / "test" / f"{run}.csv"
    return folder / "test" / run.regime / f"{file_name(run.system)}.csv"


def grid_means(config: Config, results: Results, regime: Regime, system: System) -> dict[float | None, float]:
    """By weight: the mean of the metric that selects, over the grid's seeds; without weights that lack a seed or at
    which the metric is undefined for all utterances."""
    steps = config.grid.steps or config.student.steps
    means = {}
    for weight in config.grid.weights if system.has_grid else (None,):
        runs = [Run(regime, system.name, weight, steps, seed) for seed in config.grid.seeds]
        values = [results.dev[run][config.evaluation.select] for run in runs if run in results.dev]
        if len(values) == len(runs) and np.isfinite(values).all():
            means[weight] = float(np.mean(values))
    return means


def choose_finalists(config: Config, results: Results) -> Finalists:
    """Of each regime: the baseline, the controls, and the best systems of the grid, each at its best weight."""
    chosen: Finalists = {}
    for regime in config.regimes:
        best = {}
        for system in config.systems(regime):
            if means := grid_means(config, results, regime, system):
                best[system.name] = max(means, key=means.get), max(means.values())
        certain = [s.name for s in config.systems(regime) if s.always or s.name == config.baseline[regime]]
        others = [name for name in best if name not in certain]
        others.sort(key=lambda name: -best[name][1])
        kept = {*certain, *others[: config.final.finalists]}
        chosen[regime] = {name: best[name][0] for name in best if name in kept}
    return chosen


def final_seeds(config: Config, results: Results, regime: Regime, system: str, weight: float | None) -> list[Run]:
    """The final runs of a system whose test results are there."""
    runs = [Run(regime, system, weight, config.student.steps, seed) for seed in config.final.seeds]
    return [run for run in runs if (run, 0.0) in results.test]


def equal_loss_shares(config: Config, results: Results, finalists: Finalists) -> dict[tuple[Regime, str], list]:
    """Of each finalist but the baseline: (share in its own output, share in the baseline's).

    The one whose objective on the development set is lower gets the largest share at which it is not above the other's.
    """
    shares = {}
    for regime, weights in finalists.items():
        baseline = config.baseline[regime]
        curves = {}
        for system, weight in weights.items():
            runs = final_seeds(config, results, regime, system, weight)
            if runs:  # the shares of an older configuration may have been others
                tried = [share for share in results.dry[runs[0]] if all(share in results.dry[run] for run in runs)]
                curves[system] = {share: np.mean([results.dry[run][share] for run in runs]) for share in tried}
        for system in curves:
            if system != baseline and baseline in curves:
                own, others = curves[system], curves[baseline]
                shares[regime, system] = (
                    max(share for share, value in own.items() if share == 0 or value <= others[0.0]),
                    max(share for share, value in others.items() if share == 0 or value <= own[0.0]),
                )
    return shares
