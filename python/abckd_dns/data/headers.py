"""Wave files whose header does not say where their samples end: those of a recorder that lost power.

A RIFF or RF64 file is a row of chunks, each with its size in front. The size of the one with the samples is written
last, when a recording ends: until then it is 0, or what it was some seconds or hours ago.
"""

from __future__ import annotations

import struct
from typing import BinaryIO, NamedTuple

_TO_THE_END = 0xFFFFFFFF
_SUBTYPES = {
    (1, 8): "PCM_U8",
    (1, 16): "PCM_16",
    (1, 24): "PCM_24",
    (1, 32): "PCM_32",
    (3, 32): "FLOAT",
    (3, 64): "DOUBLE",
    (6, 8): "ALAW",
    (7, 8): "ULAW",
}
"""How libsndfile names what a format tag and a number of bits mean."""
_EXTENSIBLE = 0xFFFE


class Unfinished(NamedTuple):
    """What is needed to read the samples without the header: where they begin, and what they are."""

    offset: int
    size: int
    rate: int
    channels: int
    subtype: str


def unfinished_wave(file: BinaryIO) -> Unfinished | None:
    """Where the samples of a wave file lie, if its header gives them an end before the true one; else None."""
    start = file.seek(0)
    magic = file.read(12)
    if magic[:4] not in (b"RIFF", b"RF64") or magic[8:] != b"WAVE":
        return None
    length, position, shape, long_size = file.seek(0, 2), start + 12, None, None
    while position + 8 <= length:
        file.seek(position)
        name, size = struct.unpack("<4sI", file.read(8))
        if name == b"fmt ":
            shape = _shape(file.read(min(size, 40)))
        elif name == b"ds64":
            long_size = struct.unpack("<8xQ", file.read(16))[0]
        elif name == b"data":
            if size == _TO_THE_END:
                size = long_size if long_size is not None else length
            if shape is None or not _goes_on(file, position + 8, size, length):
                return None
            return Unfinished(position + 8, length - position - 8, *shape)
        position += 8 + size + size % 2
    return None


def _shape(form: bytes) -> tuple[int, int, str] | None:
    if len(form) < 16:
        return None
    tag, channels, rate, bits = struct.unpack("<HHI6xH", form[:16])
    if tag == _EXTENSIBLE and len(form) >= 26:
        tag = struct.unpack("<H", form[24:26])[0]
    subtype = _SUBTYPES.get((tag, bits))
    return (rate, channels, subtype) if subtype and channels and rate else None


def _goes_on(file: BinaryIO, offset: int, size: int, length: int) -> bool:
    """Whether more samples follow behind `size` bytes, rather than nothing or a row of chunks to the end."""
    position = offset + size + size % 2
    if length - position < 8:  # nothing, or less than a chunk
        return False
    while position + 8 <= length:
        file.seek(position)
        name, size = struct.unpack("<4sI", file.read(8))
        if not all(32 <= byte < 127 for byte in name):
            return True
        position += 8 + size + size % 2
    return position > length + 1
