"""Where audio is read from: folders of files and of tar shards.

A tar shard is what webdataset writes: an uncompressed tar archive, here with audio files in it. Its members are read in
place, at random, so that everything said of files holds for them. Where they lie in a shard is kept in the user's cache
folder until the shard changes, because finding them takes a read per member.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..files import user_cache, write_atomically

AUDIO_SUFFIXES = frozenset((".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64", ".caf"))

_LAYOUT_VERSION = 2


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
    by a range, as in speech-{000..099}.tar. Raises InputError that blames `argument`.
    """
    shards = check_source(place, argument)
    found = [] if shards else _list_folder(place, argument)
    found += [member for shard in shards for member in _list_shard(str(shard), argument)]
    if not found:
        raise InputError(
            f"{argument}: {place} has no audio file ({' '.join(sorted(AUDIO_SUFFIXES))}), in no .tar either"
        )
    return found


def check_source(place: Path, argument: str) -> list[Path]:
    """The shards of `place`; none if it is a folder. Raises InputError that blames `argument` if it is neither."""
    shards = _expand(place)
    if len(shards) == 1 and place.is_dir():
        return []
    if not all(shard.suffix == ".tar" for shard in shards):
        raise InputError(f"{argument}: expected a folder of audio files or .tar shards, but {place} is not a folder")
    for shard in shards:
        if not shard.is_file():
            raise InputError(f"{argument}: the shard {shard} does not exist")
    return shards


def list_audio(folder: Path, argument: str) -> list[Path]:
    """Every audio file below `folder`, sorted; links are followed. Raises InputError that blames `argument`."""
    if not folder.is_dir():
        raise InputError(f"{argument}: expected a folder of audio files, but {folder} is not a folder")
    files, _ = _walk(folder, argument)
    if not files:
        raise InputError(f"{argument}: {folder} has no audio file ({' '.join(sorted(AUDIO_SUFFIXES))})")
    return files


def _expand(place: Path) -> list[Path]:
    match = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", str(place))
    if match is None:
        return [place]
    before, low, high, after = match.groups()
    return [Path(f"{before}{number:0{len(low)}}{after}") for number in range(int(low), int(high) + 1)]


def _list_folder(root: Path, argument: str) -> list[Path | Member]:
    files, shards = _walk(root, argument)
    return [*files, *sorted(member for shard in shards for member in _list_shard(str(shard), argument))]


def _walk(root: Path, argument: str) -> tuple[list[Path], list[Path]]:
    """The audio files and the tar archives below `root`, each sorted."""
    files, shards = [], []
    pending, seen = [str(root)], set()
    while pending:
        path = pending.pop()
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:  # a link back up
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                for entry in entries:
                    suffix = os.path.splitext(entry.name)[1].lower()
                    if entry.is_dir():
                        pending.append(entry.path)
                    elif suffix in AUDIO_SUFFIXES:
                        files.append(Path(path, entry.name))
                    elif suffix == ".tar":
                        shards.append(Path(path, entry.name))
        except OSError as error:
            raise InputError(f"{argument}: cannot list {path}: {error}") from error
    return sorted(files), sorted(shards)


def _list_shard(shard: str, argument: str) -> list[Member]:
    """The audio files of a shard, from the cache if the shard is as it was."""
    try:
        status = os.stat(shard)
    except OSError as error:
        raise InputError(f"{argument}: cannot list {shard}: {error}") from error
    stamp = [_LAYOUT_VERSION, status.st_size, status.st_mtime_ns]
    cache = user_cache() / "shards" / f"{hashlib.sha256(os.path.abspath(shard).encode()).hexdigest()}.json"
    try:
        content = json.loads(cache.read_text())
        if content["stamp"] == stamp:
            return [Member(shard, *member) for member in content["members"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # it is only a cache
    members = _read_shard(shard, argument)
    text = json.dumps({"stamp": stamp, "members": [member[1:] for member in members]})
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cache, lambda unfinished: unfinished.write_text(text))
    except (OSError, InputError):
        pass  # a home that is full or read-only costs time at the next start, no more
    return members


def _read_shard(shard: str, argument: str) -> list[Member]:
    try:
        with tarfile.open(shard, "r:") as archive:
            return [
                Member(shard, member.name, member.offset_data, member.size)
                for member in archive
                if member.isfile() and os.path.splitext(member.name)[1].lower() in AUDIO_SUFFIXES
            ]
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{argument}: {shard} is not a whole, uncompressed tar archive: {error}") from error
