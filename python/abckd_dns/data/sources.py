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
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..errors import InputError, remark
from ..files import printable, user_cache, write_atomically

WRITABLE = {
    ".wav": "WAV",
    ".wave": "WAV",
    ".flac": "FLAC",
    ".ogg": "OGG",
    ".oga": "OGG",
    ".opus": "OGG",
    ".mp3": "MP3",
    ".aif": "AIFF",
    ".aiff": "AIFF",
    ".aifc": "AIFF",
    ".au": "AU",
    ".snd": "AU",
    ".w64": "W64",
    ".rf64": "RF64",
    ".caf": "CAF",
    ".sph": "NIST",
    ".nist": "NIST",
}
"""What libsndfile calls the formats that are read and written, by suffix."""
READ_ONLY = frozenset((".m4a", ".mp4", ".aac", ".wma", ".amr", ".webm", ".mka", ".3gp"))
"""Suffixes of formats that only FFmpeg reads."""
AUDIO_SUFFIXES = frozenset(WRITABLE) | READ_ONLY

_FORMATS = " ".join(sorted(AUDIO_SUFFIXES))
_LAYOUT_VERSION = 3


class Member(NamedTuple):
    """An audio file inside a tar shard."""

    shard: str
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"

    def open(self) -> Window:
        return Window(open(self.shard, "rb", buffering=0), self.offset, self.size)


class Window(io.RawIOBase):
    """`size` bytes of a file from `offset` on, as a file of its own; only what is read is taken from the disk."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._position = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer) -> int:
        wanted = max(0, min(len(buffer), self._size - self._position))
        self._file.seek(self._offset + self._position)
        count = self._file.readinto(memoryview(buffer)[:wanted])
        self._position += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def find_sources(places: Path | Sequence[Path], argument: str) -> list[str | Member]:
    """Every audio file of `places`, each in order: a folder (as `list_audio` lists it, and what is in its tar shards),
    a tar shard, or shards named by a range, as in speech-{000..099}.tar. Raises InputError that blames `argument`.
    """
    places = [places] if isinstance(places, Path) else places
    found: list[str | Member] = []
    seen: set[tuple[int, int]] = set()
    for place in places:
        shards = [os.fspath(shard) for shard in check_source(place, argument)]
        if not shards:
            listing = _walk(place, argument, seen)
            listing.remark(argument)
            found += listing.audio
            shards = listing.shards
        members = [member for shard in shards for member in _list_shard(shard, argument)]
        found += members if len(shards) == 1 else sorted(members)
    if not found:
        where = " and ".join(printable(place) for place in places)
        raise InputError(f"{argument}: {where} has no audio file ({_FORMATS}), in no .tar either")
    return found


def check_source(place: Path, argument: str) -> list[Path]:
    """The shards of `place`; none if it is a folder. Raises InputError that blames `argument` if it is neither."""
    shards = _expand(place)
    if len(shards) == 1 and place.is_dir():
        return []
    if not all(shard.suffix == ".tar" for shard in shards):
        raise InputError(
            f"{argument}: expected a folder of audio files or .tar shards, but {printable(place)} is not a folder"
        )
    for shard in shards:
        if not shard.is_file():
            raise InputError(f"{argument}: the shard {printable(shard)} does not exist")
    return shards


def list_audio(folder: Path, argument: str, leave_out: Path | None = None) -> list[str]:
    """Every audio file below `folder`, sorted; links are followed, each folder once. Hidden files, hidden folders and
    the folder `leave_out` are passed over. Raises InputError that blames `argument`."""
    if not folder.is_dir():
        raise InputError(f"{argument}: expected a folder of audio files, but {printable(folder)} is not a folder")
    seen = set()
    if leave_out is not None and leave_out.is_dir() and not leave_out.samefile(folder):
        seen.add(_identity(os.stat(leave_out)))
    listing = _walk(folder, argument, seen)
    if not listing.audio:
        raise InputError(f"{argument}: {printable(folder)} has no audio file ({_FORMATS}){listing.others()}")
    listing.remark(argument)
    return listing.audio


def _expand(place: Path) -> list[Path]:
    match = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", str(place))
    if match is None:
        return [place]
    before, low, high, after = match.groups()
    return [Path(f"{before}{number:0{len(low)}}{after}") for number in range(int(low), int(high) + 1)]


class _Listing(NamedTuple):
    """What lies below a folder: audio files and tar archives, each sorted, and how many files of every other suffix."""

    folder: str
    audio: list[str]
    shards: list[str]
    other: Counter[str]

    def others(self) -> str:
        if not self.other:
            return ""
        named = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in self.other.most_common(6))
        more = f" and {len(self.other) - 6} more formats" if len(self.other) > 6 else ""
        return f"; passed over: {named}{more}"

    def remark(self, argument: str) -> None:
        if self.other:
            count = len(self.audio) + len(self.shards)
            remark(f"{argument}: {count} files in {printable(self.folder)}{self.others()}")


def _walk(root: Path, argument: str, seen: set[tuple[int, int]]) -> _Listing:
    """Below `root`, without what is hidden and the folders in `seen`, to which those that are found are added."""
    listing = _Listing(os.fspath(root), [], [], Counter())
    # A folder is listed under its own name before any link to it, on whatever order the disk has them.
    pending, links = [listing.folder], []
    while pending or links:
        path = pending.pop() if pending else links.pop(0)
        try:
            identity = _identity(os.stat(path))
            if identity in seen:
                continue
            seen.add(identity)
            _list(path, listing, pending, links)
        except OSError as error:
            if path == listing.folder:
                raise InputError(f"{argument}: cannot list {printable(path)}: {error}") from error
            remark(f"{argument}: passed over {printable(path)}, which cannot be listed: {error.strerror}")
        if not pending:
            links.sort()
    for files in (listing.audio, listing.shards):
        files.sort(key=lambda name: name.replace(os.sep, "\0"))  # folder by folder
    return listing


def _list(path: str, listing: _Listing, pending: list[str], links: list[str]) -> None:
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            suffix = os.path.splitext(entry.name)[1].lower()
            if entry.is_dir():
                (links if entry.is_symlink() else pending).append(entry.path)
            elif not (entry.is_file() or entry.is_symlink()):  # a pipe would be waited for; a broken link is an error
                listing.other["no file"] += 1
            elif suffix in AUDIO_SUFFIXES:
                listing.audio.append(entry.path)
            elif suffix == ".tar":
                listing.shards.append(entry.path)
            else:
                listing.other[suffix] += 1


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


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
                if member.isfile() and _is_audio(member.name)
            ]
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{argument}: {shard} is not a whole, uncompressed tar archive: {error}") from error


def _is_audio(name: str) -> bool:
    base = os.path.basename(name)
    return not base.startswith(".") and os.path.splitext(base)[1].lower() in AUDIO_SUFFIXES
