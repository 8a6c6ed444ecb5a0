"""The documentation's pages, and the code in them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def pages() -> list[str]:
    """All Markdown files of the repository."""
    folders = [ROOT / name for name in ("docs", "csrc", "python", "benchmarks", "studies", "tests")]
    files = [*ROOT.glob("*.md"), *(file for folder in folders for file in folder.rglob("*.md"))]
    return sorted(str(file.relative_to(ROOT)) for file in files)


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language, in the order of the page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def indented(page: str, start: str) -> list[str]:
    """Commands of indented blocks that begin with `start`, without their comments."""
    text = (ROOT / page).read_text()
    return [line.partition(" #")[0].strip() for line in re.findall(rf"^    ({start}.*)$", text, re.MULTILINE)]
