"""What is written of scores: Markdown for people, CSV for programs."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..markdown import table
from .intervals import Interval, mean_interval, paired_difference
from .scores import Scores
from .systems import UNPROCESSED


class Cost(NamedTuple):
    """What a system costs, None where it is unknown: parameters, multiply-accumulate operations per second of sound,
    seconds of latency, and the real-time factor of this evaluation."""

    system: str
    parameters: int | None
    macs: float | None
    latency: float | None
    factor: float | None


def format_costs(costs: list[Cost]) -> list[str]:
    """Markdown: a table and what it means; nothing without systems of which something is known."""
    known = [cost for cost in costs if any(value is not None for value in cost[1:])]
    if not known:
        return []
    cells = [
        [
            cost.system,
            "" if cost.parameters is None else f"{cost.parameters:,}",
            "" if cost.macs is None else f"{cost.macs / 1e6:,.1f} M",
            "" if cost.latency is None else f"{1000 * cost.latency:g} ms",
            "" if cost.factor is None else f"{cost.factor:.3f}",
        ]
        for cost in known
    ]
    names = ["", "parameters", "MACs per second", "latency", "real-time factor"]
    return [
        table(names, cells, align=True),
        "MACs of convolutions, matrix products and recurrent layers; the real-time factor is that of this evaluation, "
        "whole recordings at once, on this machine as busy as it was.",
    ]


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


def write_table(path: Path, scores: Scores, baseline: str | None, costs: Iterable[Cost] = ()) -> None:
    """One row per system and metric; what a system costs is a mean without interval."""
    differences = _differences(scores, baseline) if baseline is not None else {}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        columns = ["mean", "low95", "high95", "defined", "undefined"]
        header = ["system", "metric", *columns, "baseline", *(f"difference_{column}" for column in columns)]
        writer.writerow(header)
        for system, values in scores.items():
            for metric, interval in _intervals(values).items():
                row = [system, metric, *interval]
                if system in differences:
                    row += [baseline, *differences[system][metric]]
                writer.writerow(row + [""] * (len(header) - len(row)))
        for cost in costs:
            for metric, value in zip(_COST_NAMES, cost[1:], strict=True):
                if value is not None:
                    writer.writerow([cost.system, metric, value, *[""] * (len(header) - 3)])


_COST_NAMES = ("parameters", "MACs per second", "latency (s)", "real-time factor")
