"""Files that are whole or absent, and where what can be made again is kept."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors

from .errors import InputError

_UMASK = os.umask(0o022)
os.umask(_UMASK)  # it can only be read by being set


def user_cache() -> Path:
    """The folder of what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "abckd_dns")


def printable(path: object) -> str:
    """A path as text that any file and terminal takes: bytes of its name that are no UTF-8 become \\xNN."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors of a file system that is full, read-only or gone become an InputError that names `path`."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"cannot write {printable(path)}: {error}; what was saved before is whole") from error


def make_parent(path: Path) -> None:
    """The folder of a file that will be written. Raises InputError."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """`write(unfinished)`, then that file becomes `path`: after a crash `path` is the old file or the new one.

    Raises InputError if the file system refuses.
    """
    unfinished = path.with_name(path.name + ".unfinished")
    with writing(path):
        try:
            write(unfinished)
            unfinished.chmod(0o666 & ~_UMASK)  # what safetensors writes only its owner may read
            _sync(unfinished)
            os.replace(unfinished, path)
            _sync_folder(path.parent)  # or else the renaming itself may be lost
        finally:
            unfinished.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """`content` as JSON, whole or not at all; what JSON does not know becomes text. Raises InputError."""
    text = json.dumps(content, indent=2, default=str) + "\n"
    write_atomically(path, lambda unfinished: unfinished.write_text(text))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)  # some systems synchronise only what is open for writing
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    if os.name == "nt":  # has no descriptors of folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
