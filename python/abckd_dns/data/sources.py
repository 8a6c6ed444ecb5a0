"""Where audio is read from: folders of files and of tar shards, whose contents are listed once and remembered.

A tar shard is what webdataset writes: an uncompressed tar archive, here with audio files in it. Its members are read in
place, at random, so that everything said of files holds for them. Listings are kept in the user's cache folder, by
folder. Next time only what was modified is listed again: one `stat` per folder and shard, none per file.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import time
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..training.states import write_atomically
from .audio import AUDIO_SUFFIXES

_RACY_NS = 2 * 10**9  # clocks of file systems are coarse: what was modified just before it was listed may change unseen
_LAYOUT_VERSION = 1


def user_cache() -> Path:
    """Where what can be made again is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "abckd_dns")


class Member(NamedTuple):
    """An audio file inside a tar shard."""

    shard: str
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"

    def open(self) -> _Window:
        return _Window(self)


class _Window(io.RawIOBase):
    """A member as a file of its own; only what is read is taken from the disk."""

    def __init__(self, member: Member) -> None:
        self._member, self._position = member, 0
        self._file = open(member.shard, "rb", buffering=0)  # noqa: SIM115 - closed below

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._member.size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer) -> int:
        wanted = max(0, min(len(buffer), self._member.size - self._position))
        self._file.seek(self._member.offset + self._position)
        count = self._file.readinto(memoryview(buffer)[:wanted])
        self._position += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()

    def __str__(self) -> str:
        return str(self._member)


def find_sources(place: Path, argument: str) -> list[Path | Member]:
    """Every audio file of `place`, sorted: a folder (of any depth, with links followed), a tar shard, or shards named
    by a range, as in speech-{000..099}.tar. `argument` is what errors blame.
    """
    shards = _expand(place)
    if len(shards) == 1 and place.is_dir():
        found = _list_folder(place, argument)
    elif all(shard.suffix == ".tar" for shard in shards):
        for shard in shards:
            if not shard.is_file():
                raise InputError(f"{argument}: the shard {shard} does not exist")
        found = [member for shard in shards for member in _list_shard(str(shard), argument)]
    else:
        raise InputError(f"{argument}: expected a folder of audio files or .tar shards, but {place} is not a folder")
    if not found:
        raise InputError(
            f"{argument}: {place} has no audio file ({' '.join(sorted(AUDIO_SUFFIXES))}), in no .tar either"
        )
    return found


def _expand(place: Path) -> list[Path]:
    match = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", str(place))
    if match is None:
        return [place]
    before, low, high, after = match.groups()
    return [Path(f"{before}{number:0{len(low)}}{after}") for number in range(int(low), int(high) + 1)]


def _list_folder(root: Path, argument: str) -> list[Path | Member]:
    cache = user_cache() / "listings" / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()}.json"
    known = _read_cache(cache)
    folders, shards = {}, {}
    pending, seen = [str(root)], set()
    while pending:
        path = pending.pop()
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:  # a link back up
                continue
            seen.add((status.st_dev, status.st_ino))
            listing = known["folders"].get(path)
            if listing is None or listing["modified"] != status.st_mtime_ns:
                listing = {"modified": _trusted(status.st_mtime_ns), **_list(path)}
            for name in listing["shards"]:
                shard = os.path.join(path, name)
                status = os.stat(shard)
                entry = known["shards"].get(shard)
                if entry is None or entry["stamp"] != [status.st_mtime_ns, status.st_size]:
                    members = [member[1:] for member in _list_shard(shard, argument)]
                    entry = {"stamp": [_trusted(status.st_mtime_ns), status.st_size], "members": members}
                shards[shard] = entry
        except OSError as error:
            raise InputError(f"{argument}: cannot list {path}: {error}") from error
        folders[path] = listing
        pending += [os.path.join(path, name) for name in listing["folders"]]
    if (folders, shards) != (known["folders"], known["shards"]):
        _write_cache(cache, {"version": _LAYOUT_VERSION, "folders": folders, "shards": shards})
    files = sorted(Path(path, name) for path, listing in folders.items() for name in listing["files"])
    members = sorted(Member(shard, *member) for shard, entry in shards.items() for member in entry["members"])
    return [*files, *members]


def _trusted(modified: int) -> int | None:
    """The time of modification; None, which no time is equal to, if it is too recent to tell what came later."""
    return modified if time.time_ns() - modified > _RACY_NS else None


def _list(path: str) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {"files": [], "folders": [], "shards": []}
    with os.scandir(path) as entries:
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()
            if entry.is_dir():
                names["folders"].append(entry.name)
            elif suffix in AUDIO_SUFFIXES:
                names["files"].append(entry.name)
            elif suffix == ".tar":
                names["shards"].append(entry.name)
    return names


def _list_shard(shard: str, argument: str) -> list[Member]:
    try:
        with tarfile.open(shard, "r:") as archive:
            return [
                Member(shard, member.name, member.offset_data, member.size)
                for member in archive
                if member.isfile() and os.path.splitext(member.name)[1].lower() in AUDIO_SUFFIXES
            ]
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{argument}: {shard} is not a whole, uncompressed tar archive: {error}") from error


def _read_cache(path: Path) -> dict:
    try:
        content = json.loads(path.read_text())
        if content["version"] == _LAYOUT_VERSION:
            return content
    except (OSError, ValueError, KeyError):
        pass  # it is only a cache
    return {"folders": {}, "shards": {}}


def _write_cache(path: Path, content: dict) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda unfinished: unfinished.write_text(json.dumps(content)))
    except (OSError, InputError):
        pass  # a home that is full or read-only costs time at the next start, no more
