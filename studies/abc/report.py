"""Runs as a table: means on the development set, and paired differences over seeds and utterances."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from . import scoring
from .package import difference


def _values(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """By run and metric, (utterances,)."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for row in scoring.read(folder / "dev.csv"):
        values = np.array([float(x) for name, x in row.items() if name.startswith("u") and x])
        found.setdefault(row["run"], {})[row["metric"]] = values
    return found


def table(folder: Path) -> str:
    """Of every setting (teacher, regime, steps) the systems in the order of their PESQ, beside the one without KD."""
    from .queue import run_of

    values = _values(folder)
    groups: dict[tuple, dict[tuple, dict[int, str]]] = {}
    baselines: dict[tuple, dict[int, str]] = {}
    for row in scoring.read(folder / "runs.csv"):
        run = run_of(row)
        system = (run.loss, run.weight, run.schedule)
        if run.loss == "none":
            baselines.setdefault((run.teacher, run.regime, run.steps, run.lr), {})[run.seed] = run.name
        else:
            setting = (run.teacher, run.regime, run.steps, run.lr)
            groups.setdefault(setting, {}).setdefault(system, {})[run.seed] = run.name
    text = []
    for setting in dict.fromkeys([*groups, *baselines]):
        teacher, regime, steps, lr = setting
        base = baselines.get((teacher if regime == "label-free" else "", regime, steps, lr), {})
        if setting in baselines and setting not in groups and regime == "labels":
            continue
        text.append(f"\n{teacher or 'no teacher'}, {regime}, {steps} steps\n")
        text.append("| loss | weight | schedule | seeds | SI-SDR | PESQ | STOI | PESQ minus no KD | dB minus no KD |")
        text.append("|---|---|---|---|---|---|---|---|---|")
        rows = []
        for system, seeds in {("no KD", 0.0, ""): base, **groups.get(setting, {})}.items():
            if not seeds:
                continue
            means = [np.mean([values[name][column].mean() for name in seeds.values()]) for column in scoring.COLUMNS]
            common = sorted(set(seeds) & set(base)) if seeds is not base else []
            differences = [
                _difference(values, [seeds[s] for s in common], [base[s] for s in common], column)
                for column in ("PESQ-WB", "SI-SDR (dB)")
            ]
            loss, weight, schedule = system
            cells = [f"`{loss}`", f"{weight:g}", schedule, str(len(seeds))]
            cells += [f"{means[0]:.2f}", f"{means[1]:.3f}", f"{means[2]:.3f}", *differences]
            rows.append((-means[1], "| " + " | ".join(cells) + " |"))
        text += [line for _, line in sorted(rows)]
    return "\n".join(text)


def _difference(values: dict, names: list[str], others: list[str], column: str) -> str:
    if not names:
        return ""
    ours, theirs = (np.stack([values[name][column] for name in group]) for group in (names, others))
    found = difference(ours, theirs)
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
