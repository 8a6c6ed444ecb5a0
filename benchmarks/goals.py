"""What the kernels should reach on a CPU, and whether what was measured does; the worst dtype counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from abckd_verify import markdown

MOVES_MUCH = 5.0  # a published form that moves more than so many times the compulsory bytes leaves room for a factor
BACKEND = "cpu"


class Goal(NamedTuple):
    """A bound for values by the rows that they are of."""

    text: str
    is_most: bool
    bound: float
    values: dict[str, float]

    @property
    def missed(self) -> dict[str, float]:
        return {name: x for name, x in self.values.items() if (x > self.bound if self.is_most else x < self.bound)}

    def cells(self) -> list[str]:
        """Of the table's row: the worst value, and what misses the bound."""
        if not self.values:
            return [self.text, self._bound, "-", "not measured"]
        worst = (max if self.is_most else min)(self.values.values())
        order = sorted(self.missed.items(), key=lambda pair: pair[1], reverse=self.is_most)
        missed = ", ".join(f"{name} {x:.2f}" for name, x in order)
        return [self.text, self._bound, f"{worst:.2f}", f"no: {missed}" if missed else "yes"]

    @property
    def _bound(self) -> str:
        return f"{'<=' if self.is_most else '>='} {self.bound:g}"


def text(rows: dict[str, dict], grown: dict | None) -> str:
    """The table of goals."""
    return markdown.table(["goal", "bound", "worst", "met"], [goal.cells() for goal in goals(rows, grown)]) + "\n"


def goals(rows: dict[str, dict], grown: dict | None) -> list[Goal]:
    """All of them, for the rows (by key) and the growth that were measured on a CPU."""
    found = []
    kept = [row for row in rows.values() if row["device"] == "cpu" and row["backend"] == BACKEND]
    for what, size, layout in (
        ("abc", "dns", "contiguous"),
        ("abc, batch 32", "large", "contiguous"),
        ("abc, channels_last", "dns", "channels_last"),
    ):
        of_abc = [row for row in kept if (row["op"], row["size"], row["layout"]) == ("abc", size, layout)]
        found += [
            Goal(f"{what}: eager / ours", False, 5, _by(of_abc, "eager", _dtype)),
            Goal(f"{what}: compile / ours", False, 1.6, _by(of_abc, "compile", _dtype)),
            Goal(f"{what}: forward / limit", True, 1.15, {row["dtype"]: _over_limit(row)[0] for row in of_abc}),
            Goal(f"{what}: backward / limit", True, 1.25, {row["dtype"]: _over_limit(row)[1] for row in of_abc}),
        ]
    usual = [row for row in kept if (row["size"], row["layout"]) == ("dns", "contiguous")]
    found += _in_network([row for row in usual if row["op"] == "abc"])
    others = [row for row in usual if row["op"] not in ("abc", "tap", "compress")]
    found += [
        Goal("every other loss: compile / ours", False, 1, _by(others, "compile", _name)),
        Goal(
            f"of these, where eager moves more than {MOVES_MUCH:g} times the compulsory bytes: eager / ours",
            False,
            3,
            _by((row for row in others if row.get("traffic", {}).get("eager", 0) > MOVES_MUCH), "eager", _name),
        ),
    ]
    small = [row for row in kept if (row["size"], row["layout"]) == ("small", "contiguous")]
    found.append(Goal("small inputs (Python and dispatch): eager / ours", False, 1, _by(small, "eager", _name)))
    axes = grown["axes"] if grown and "gpu" not in grown["machine"] else {}
    exponents = {name: abs(axis["exponent"] - 1) for name, axis in axes.items()}
    found.append(Goal("growth of abc: distance of the exponent from 1", True, 0.05, exponents))
    return found


def _in_network(rows: list[dict]) -> list[Goal]:
    """Of abc by a Distiller."""
    compared, peak, in_features, held = {}, {}, {}, {}
    for row in rows:
        if not row["network"] or "compile" not in row["network"]["loss_milliseconds"]:
            continue
        name, found = row["dtype"], row["network"]
        feature = min(math.prod(shape) for shape in row["student"]) * getattr(torch, name).itemsize / 1e6
        milliseconds = {form: x["median"] for form, x in found["loss_milliseconds"].items()}
        megabytes = found["peak_megabytes"]
        compared[name] = milliseconds["ours"] / milliseconds["compile"]
        peak[name] = megabytes["ours"] / megabytes["compile"]
        in_features[name] = megabytes["ours"] / feature
        held[name] = found["held_megabytes"]["ours"] / feature
    return [
        Goal("in a network: ours / compile", True, 0.6, compared),
        Goal("peak memory: ours / compile", True, 1, peak),
        Goal("peak memory, in student features", True, 1, in_features),
        Goal("held after forward, in student features", True, 0.1, held),
    ]


def _by(rows: Iterable[dict], form: str, name: Callable[[dict], str]) -> dict[str, float]:
    """How many times as long as ours the form takes, by medians; where it could run."""
    times = [(name(row), row["milliseconds"]) for row in rows if form in row["milliseconds"]]
    return {key: x[form]["total"] / x["ours"]["total"] for key, x in times}


def _over_limit(row: dict) -> tuple[float, float]:
    """Of forward and of backward."""
    (forward, total), (least, least_total) = (
        (x["forward"], x["total"]) for x in (row["milliseconds"]["ours"], row["limit"])
    )
    return forward / least, (total - forward) / (least_total - least)


def _dtype(row: dict) -> str:
    return row["dtype"]


def _name(row: dict) -> str:
    return f"{row['op']} {row['dtype']}"
