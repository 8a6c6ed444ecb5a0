"""CSV files of the study: written whole or not at all, with numbers of three decimals."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from ..files import make_parent, write_atomically

Row = dict[str, str]


def write_rows(path: Path, rows: list[dict], decimals: int = 3) -> None:
    """All rows have the keys of the first; floats get `decimals`, what is not a number is left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _format(value, decimals) for key, value in row.items()})
    make_parent(path)
    write_atomically(path, lambda unfinished: unfinished.write_text(text.getvalue(), newline=""))


def read_rows(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def number(text: str) -> float:
    return float(text) if text else math.nan


def _format(value: object, decimals: int) -> object:
    if not isinstance(value, float):
        return value
    return f"{value:.{decimals}f}" if math.isfinite(value) else ""
