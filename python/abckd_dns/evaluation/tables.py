"""What is written of scores: Markdown for people, CSV for programs."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from ..markdown import table
from .intervals import Interval, mean_interval, paired_difference
from .scores import UNPROCESSED, Scores


def format_report(scores: Scores, baseline: str | None, remarks: Iterable[str] = ()) -> str:
    """Markdown: a table of means, and if wanted one of the differences from the baseline."""
    parts = [_format_table({system: _intervals(values) for system, values in scores.items()})]
    count = len(next(iter(scores[UNPROCESSED].values())))
    parts.append(
        f"{count} examples; mean ± half of its 95 % bootstrap interval; in parentheses the number of examples "
        "for which a value is undefined, which are left out of the mean."
    )
    if baseline is not None:
        parts.append(f"Difference from {baseline}, paired by example:")
        parts.append(_format_table(_differences(scores, baseline), sign="+"))
    return "\n\n".join([*parts, *remarks])


def format_interval(metric: str, interval: Interval, sign: str = "") -> str:
    decimals = 3 if "STOI" in metric else 2
    undefined = f" ({interval.undefined})" if interval.undefined else ""
    return f"{interval.mean:{sign}.{decimals}f} ± {interval.margin:.{decimals}f}{undefined}"


def _intervals(values: dict[str, list[float]]) -> dict[str, Interval]:
    return {metric: mean_interval(of_metric) for metric, of_metric in values.items()}


def _differences(scores: Scores, baseline: str) -> dict[str, dict[str, Interval]]:
    return {
        system: {metric: paired_difference(of_metric, scores[baseline][metric]) for metric, of_metric in values.items()}
        for system, values in scores.items()
        if system != baseline
    }


def _format_table(rows: dict[str, dict[str, Interval]], sign: str = "") -> str:
    metrics = list(next(iter(rows.values()), {}))
    cells = [
        [system, *(format_interval(metric, interval, sign) for metric, interval in intervals.items())]
        for system, intervals in rows.items()
    ]
    return table(["", *metrics], cells, align=True)


def write_table(path: Path, scores: Scores, baseline: str | None) -> None:
    """One row per system and metric."""
    differences = _differences(scores, baseline) if baseline is not None else {}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        columns = ["mean", "low95", "high95", "defined", "undefined"]
        writer.writerow(["system", "metric", *columns, "baseline", *(f"difference_{column}" for column in columns)])
        for system, values in scores.items():
            for metric, interval in _intervals(values).items():
                row = [system, metric, *interval]
                if system in differences:
                    row += [baseline, *differences[system][metric]]
                writer.writerow(row + [""] * (3 + 2 * len(columns) - len(row)))


def write_files_csv(path: Path, scores: Scores, example_names: list[str]) -> None:
    """One row per system and example."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["system", "example", *scores[UNPROCESSED]])
        for system, values in scores.items():
            for row in zip(example_names, *values.values(), strict=True):
                writer.writerow([system, *row])
