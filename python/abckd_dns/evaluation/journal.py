"""The values of every example, on the disk as soon as they are known.

NAME_files.csv has a row per system and example. While an evaluation is under way there is also NAME_files.unfinished,
which says what is evaluated: the same evaluation goes on from there, and another begins anew.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import remark
from ..files import write_atomically, writing
from .scores import Result, Row, Scores

_OTHERS = ("real-time factor", "delay (s)", "remark")


class Journal:
    """Of `systems` on examples called `names`; `identity` is what the values depend on."""

    def __init__(self, path: Path, systems: list[str], columns: list[str], names: list[str], identity: Any) -> None:
        self.path, self.systems, self.columns, self.names = path, systems, columns, names
        self.results: dict[int, Result] = {}
        """By number of the example."""
        self._mark = path.with_suffix(".unfinished")
        digest = hashlib.sha256(json.dumps(identity, default=str, sort_keys=True).encode()).hexdigest()
        with writing(path):
            if self._mark.is_file() and path.is_file():
                if self._mark.read_text() == digest:
                    self._read()
                    remark(f"{path}: {len(self.results)} of {len(names)} examples are there; the evaluation goes on")
                else:
                    remark(f"{path}: begun with other arguments or data; the evaluation begins anew")
            self.write()  # without what may have been cut off
            self._mark.write_text(digest)

    def add(self, index: int, result: Result) -> None:
        """After this the result is in the file."""
        self.results[index] = result
        with writing(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            file.write(self._text(self._rows(index)))
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Everything is there: in order, system by system."""
        self.write()
        self._mark.unlink(missing_ok=True)

    def write(self) -> None:
        rows = [row for index in sorted(self.results) for row in self._rows(index)]
        order = {system: number for number, system in enumerate((*self.systems, ""))}
        rows.sort(key=lambda row: order[row[0]])
        text = self._text([["system", "example", *self.columns, *_OTHERS], *rows])
        write_atomically(self.path, lambda unfinished: unfinished.write_text(text, encoding="utf-8", newline=""))

    @property
    def scores(self) -> Scores:
        """Of the examples up to the last one that is known; NaN where an example cannot be used."""
        known = sorted(self.results)
        return {
            system: {
                column: [self._value(self.results[index], system, column) for index in known] for column in self.columns
            }
            for system in self.systems
        }

    def failures(self) -> dict[str, str]:
        """The examples that cannot be used, and why."""
        return {self.names[index]: result.failure for index, result in self.results.items() if result.failure}

    def rows_of(self, system: str) -> list[Row]:
        return [result.rows[system] for result in self.results.values() if not result.failure]

    def _value(self, result: Result, system: str, column: str) -> float:
        return math.nan if result.failure else result.rows[system].values[column]

    def _rows(self, index: int) -> Iterator[list[Any]] | list[list[Any]]:
        result, name = self.results[index], self.names[index]
        if result.failure:
            return [["", name, *[""] * len(self.columns), "", "", result.failure]]
        return [
            [system, name, *row.values.values(), _blank(row.factor), _blank(row.delay), row.remark]
            for system, row in result.rows.items()
        ]

    def _text(self, rows: Any) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue()

    def _read(self) -> None:
        numbers = {name: index for index, name in enumerate(self.names)}
        found: dict[int, Result] = {}
        with self.path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                index = numbers.get(row["example"])
                if index is None or None in row.values():  # a line that was cut off
                    continue
                if not row["system"]:
                    found[index] = Result(failure=row["remark"])
                    continue
                values = {column: float(row[column]) for column in self.columns}
                factor, delay = (float(row[name] or "nan") for name in _OTHERS[:2])
                found.setdefault(index, Result()).rows[row["system"]] = Row(values, factor, delay, row["remark"])
        self.results = {
            index: result for index, result in found.items() if result.failure or len(result.rows) == len(self.systems)
        }


def _blank(value: float) -> float | str:
    return "" if math.isnan(value) else value
