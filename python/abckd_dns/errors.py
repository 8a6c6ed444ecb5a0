"""What a user of the commands is meant to read: the one exception, and remarks."""

from __future__ import annotations

import sys


class InputError(Exception):
    """An argument, a file or a folder is not what it must be; printed without a traceback."""


def remark(text: str) -> None:
    """Say what a user should know and what is no error, on standard error, above any progress bar."""
    bars = sys.modules.get("tqdm")  # without a bar there is no need of it
    if bars is None:
        print(text, file=sys.stderr, flush=True)
    else:
        bars.tqdm.write(text, file=sys.stderr)
