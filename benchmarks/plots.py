"""The pictures of docs/performance.md. Each carries the digest of what it shows, so that a stale one is found."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import matplotlib

FORMS = {"eager": "o", "compile": "s", "ours": "D"}


def digest(shown) -> str:
    """Of the data of a picture."""
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()[:16]


def speed(rows: list[dict], file: Path) -> None:
    """Forward + backward of every row over the limit of memory bandwidth, medians and quartiles."""
    pyplot = _pyplot()
    shown = rows
    rows = [row for row in rows if row["op"] != "compress"]  # maps, which fit into the cache: no limit of memory
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.28 * len(rows)), layout="constrained")
    for form, marker in FORMS.items():
        having = [(y, row) for y, row in enumerate(rows) if form in row["milliseconds"]]
        x = [row["milliseconds"][form]["total"] / row["limit"]["total"] for _, row in having]
        ends = [[abs(end - row["milliseconds"][form]["total"]) / row["limit"]["total"]
                 for end, (_, row) in zip(side, having, strict=True)]
                for side in zip(*(row["quartiles"][form]["total"] for _, row in having), strict=True)]  # fmt: skip
        axes.errorbar(x, [y for y, _ in having], xerr=ends or None, fmt=marker, markersize=4, label=form)
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xlabel("forward + backward, times the limit of memory bandwidth")
    axes.grid(axis="x", linewidth=0.3)
    axes.legend()
    _save(figure, file, shown)


def growth(found: dict, file: Path) -> None:
    """Time over size, by axis."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, axis in found["axes"].items():
        label = f"{name}: exponent {axis['exponent']:.2f}"
        axes.loglog(found["factors"], axis["milliseconds"], marker="o", markersize=3, label=label)
    axes.set_xlabel("times the smallest size")
    axes.set_ylabel("abc, forward + backward, ms")
    axes.grid(linewidth=0.3)
    axes.legend()
    _save(figure, file, found)


def _label(row: dict) -> str:
    return f"{row['op']} {row['dtype']}"


def _pyplot():
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "abckd"  # the same data give the same file
    from matplotlib import pyplot

    return pyplot


def _save(figure, file: Path, shown) -> None:
    about = {"Description": f"data {digest(shown)}", "Date": None} if file.suffix == ".svg" else None
    figure.savefig(file, metadata=about, dpi=120)
    figure.clear()
