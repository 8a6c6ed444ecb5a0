"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(titles: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    return "\n".join([head(titles), *map(row, rows)])


def head(titles: Sequence[str]) -> str:
    """The two lines above the rows."""
    return f"{row(titles)}\n{'|---' * len(titles)}|"


def row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
