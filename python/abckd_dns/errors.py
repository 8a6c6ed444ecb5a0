"""What a user of the commands is meant to read: the one exception, and remarks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(Exception):
    """An argument, a file or a folder is not what it must be; printed without a traceback."""


def remark(text: str) -> None:
    """Say what a user should know and what is no error, on standard error, above any progress bar."""
    bars = sys.modules.get("tqdm")  # without a bar there is no need of it
    if bars is None:
        print(text, file=sys.stderr, flush=True)
    else:
        bars.tqdm.write(text, file=sys.stderr)


@contextmanager
def worker_errors() -> Iterator[None]:
    """What becomes of the processes of a torch loader that end, or that have no memory to share, is an InputError."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if any(sign in text for sign in ("shared memory", "/shm", "Bus error", "write to file </torch")):
            raise InputError(
                "--workers: the shared memory (/dev/shm) is too small for the examples that the worker processes hand "
                "over; make it larger (docker run --shm-size=1g), or choose fewer --workers, or 0, or smaller batches"
            ) from error
        if "DataLoader worker" in text and ("killed by signal" in text or "exited unexpectedly" in text):
            raise InputError(
                f"--workers: a process that makes examples has ended ({text.splitlines()[0]}); where memory has run "
                "out, choose fewer of them"
            ) from error
        raise
