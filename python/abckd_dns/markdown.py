"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], align: bool = False) -> str:
    """Rows below their titles. align: columns of one width, for those who read it as text."""
    cells = [titles, *rows]
    widths = [max(map(len, column)) if align else 0 for column in zip(*cells, strict=True)]
    head, *others = (f"| {' | '.join(map(str.ljust, row, widths))} |" for row in cells)
    rule = "|".join("-" * (width + 2) if align else " --- " for width in widths)
    return "\n".join([head, f"|{rule}|", *others])
