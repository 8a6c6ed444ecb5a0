"""Audio files in, as waveforms: in blocks, whole, or a segment of them.

soundfile reads what it can, FFmpeg the rest. No file is believed as to where it ends: everything is read to the end,
however long a header says it is.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
from torch import Tensor

from ..constants import SAMPLE_RATE
from ..errors import InputError, remark
from ..files import printable
from .headers import unfinished_wave
from .resampling import resample, resample_blocks
from .sources import Member, Window

Source = str | Path | Member

BLOCK = 1 << 16
"""Samples per channel that are read at once."""

_UNKNOWN = 1 << 48  # a header without a length has one beyond it
_CANCELS = 0.01  # power of the mean of channels, relative to theirs, below which they are in opposite phase
_ERRORS = (soundfile.SoundFileError, OSError, ValueError)


class Header(NamedTuple):
    """What a file says of itself: sample rate in Hz, samples per channel (None if unknown or a guess), and how
    libsndfile names container and encoding ("" where FFmpeg reads it)."""

    rate: int
    channels: int
    length: int | None
    container: str
    subtype: str


def read_header(source: Source) -> Header:
    with _open(source) as file:
        return file.header


def read_blocks(source: Source) -> Iterator[np.ndarray]:
    """A whole file, (n, channels) float32 at its own rate, n <= BLOCK. Raises InputError at the first block that is
    bad, and for a file without samples."""
    count = 0
    with _open(source) as file:
        header = file.header
        try:
            for block in file.blocks():
                _check_finite(block, source)
                count += len(block)
                yield block
        except _ERRORS as error:
            raise InputError(f"cannot read {_name(source)} after {count / header.rate:.2f} s: {error}") from error
    _check_any(count, source)
    if header.length is not None and count < header.length:
        remark(
            f"{_name(source)}: ends after {count / header.rate:.2f} s of the {header.length / header.rate:.2f} s "
            "that its header states"
        )


def read(source: Source) -> tuple[Tensor, int]:
    """A whole file: waveform (channels, N) at its own sample rate, and that rate in Hz."""
    rate = read_header(source).rate
    return torch.from_numpy(np.concatenate(list(read_blocks(source))).T.copy()), rate


def read_speech(source: Source) -> Tensor:
    """A whole file as mono at 16 kHz: waveform (N,)."""
    header = read_header(source)
    first_alone = header.channels > 1 and _cancel_in_file(source)
    mono = (_mono(block, first_alone) for block in read_blocks(source))
    return torch.cat(list(resample_blocks(mono, header.rate, SAMPLE_RATE)))


def read_segment(source: Source, length: int, position: float, *, channel: float | None = None) -> Tensor:
    """At most `length` samples of mono at 16 kHz from one place of a file, without reading the rest.

    `position` in [0, 1) chooses the place among the possible ones. A shorter file is returned whole. `channel` in
    [0, 1) chooses one of the channels; without it they are averaged.
    """
    with _open(source) as file:
        header = file.header
        wanted = math.ceil(length * header.rate / SAMPLE_RATE)
        if position:
            available = header.length if header.length is not None else _count(source)
            start = int(position * (max(available - wanted, 0) + 1))
        else:
            start = 0
        try:
            samples = file.part(start, wanted)
        except _ERRORS as error:
            raise InputError(f"cannot read {_name(source)}: {error}") from error
    _check_any(len(samples), source)
    _check_finite(samples, source)
    if channel is not None:
        mono = torch.from_numpy(samples[:, int(channel * header.channels)].copy())
    else:
        mono = _mono(samples, _cancel(*_powers(samples), source))
    return resample(mono, header.rate, SAMPLE_RATE)[:length]


def _mono(samples: np.ndarray, first_alone: bool) -> Tensor:
    return torch.from_numpy(samples[:, 0].copy() if first_alone else samples.mean(axis=1))


def _powers(samples: np.ndarray) -> tuple[float, float]:
    """Of the mean of the channels, and the mean of theirs, times the number of samples."""
    mean = samples.mean(axis=1, dtype=np.float64)
    return float(mean @ mean), float(np.square(samples, dtype=np.float64).sum() / samples.shape[1])


def _cancel_in_file(source: Source) -> bool:
    """Whether the channels cancel each other over the whole file."""
    powers = np.sum([_powers(block) for block in read_blocks(source)], axis=0)
    return _cancel(*powers, source)


def _cancel(of_mean: float, of_channels: float, source: Source) -> bool:
    if of_mean >= _CANCELS * of_channels:
        return False
    if of_channels > 0:
        _remark_once(f"{_name(source)}: its channels are in opposite phase and cancel each other; the first is used")
    return of_channels > 0


@functools.lru_cache(maxsize=10_000)
def _remark_once(text: str) -> None:
    remark(text)


@functools.lru_cache(maxsize=100_000)
def _count(source: Source) -> int:
    """Samples per channel of a file of which no header says it; all of it is decoded."""
    return sum(map(len, read_blocks(source)))


def _name(source: Source) -> str:
    return printable(source)


def _check_any(count: int, source: Source) -> None:
    if not count:
        raise InputError(f"cannot use {_name(source)}: it has no samples")


def _check_finite(samples: np.ndarray, source: Source) -> None:
    if not np.isfinite(samples).all():
        raise InputError(f"cannot use {_name(source)}: it has samples that are not finite numbers")


@contextmanager
def _open(source: Source) -> Iterator[_SoundFile | _Ffmpeg]:
    """A file, open in the decoder that reads all of it."""
    try:
        with source.open() if isinstance(source, Member) else open(source, "rb") as file:
            try:
                decoder = _by_soundfile(source, file)
            except _ERRORS as error:
                decoder = _by_ffmpeg(file)
                if decoder is None:
                    why = getattr(error, "error_string", error) if file.seek(0, 2) else "it is empty"
                    raise InputError(f"cannot read {_name(source)}: {why}") from error
            with decoder:
                yield decoder
    except OSError as error:
        raise InputError(f"cannot read {_name(source)}: {error}") from error


def _by_soundfile(source: Source, file: Any) -> _SoundFile | _Ffmpeg:
    raw = unfinished_wave(file)
    if raw is not None:
        window = Window(file, raw.offset, raw.size)
        return _SoundFile(window, format="RAW", subtype=raw.subtype, samplerate=raw.rate, channels=raw.channels)
    file.seek(0)
    # By its name where it has one, which is much faster; as bytes, for not every name is UTF-8.
    decoder = _SoundFile(file if isinstance(source, Member) else os.fsencode(source))
    # The length of an MP3 may be a guess, and no sample is read beyond it.
    if decoder.container == "MP3" or not 0 < decoder.file.frames < _UNKNOWN:
        complete = _by_ffmpeg(file, seeking=decoder)
        if complete is not None:
            return complete
    return decoder


def _by_ffmpeg(file: Any, seeking: _SoundFile | None = None) -> _Ffmpeg | None:
    """None if FFmpeg finds no sound in it."""
    import av

    file.seek(0)
    try:
        container = av.open(file)
    except (av.FFmpegError, ValueError):
        return None
    if not container.streams.audio:
        container.close()
        return None
    return _Ffmpeg(container, seeking)


class _SoundFile:
    """What libsndfile reads."""

    def __init__(self, file: Any, **raw: Any) -> None:
        self.file = soundfile.SoundFile(file, **raw)
        self.container = "WAV" if raw else self.file.format

    def __enter__(self) -> _SoundFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()

    @property
    def header(self) -> Header:
        file = self.file
        length = file.frames if file.frames < _UNKNOWN and self.container != "MP3" else None
        return Header(file.samplerate, file.channels, length, self.container, file.subtype)

    def blocks(self) -> Iterator[np.ndarray]:
        while len(block := self.file.read(BLOCK, dtype="float32", always_2d=True)):
            yield block

    def part(self, start: int, count: int) -> np.ndarray:
        self.file.seek(min(start, self.file.frames))
        return self.file.read(count, dtype="float32", always_2d=True)


class _Ffmpeg:
    """What FFmpeg reads; `seeking` is libsndfile, where it can seek in the same file."""

    def __init__(self, container: Any, seeking: _SoundFile | None) -> None:
        self.container, self.seeking = container, seeking
        self.stream = container.streams.audio[0]

    def __enter__(self) -> _Ffmpeg:
        return self

    def __exit__(self, *exception: object) -> None:
        self.container.close()
        if self.seeking is not None:
            self.seeking.file.close()

    @property
    def header(self) -> Header:
        if self.seeking is not None:
            return self.seeking.header._replace(length=None)
        context = self.stream.codec_context
        return Header(context.sample_rate, context.channels, None, "", "")

    def blocks(self) -> Iterator[np.ndarray]:
        import av

        try:
            for frame in self.container.decode(self.stream):
                samples = frame.to_ndarray()
                if not frame.format.is_planar:
                    samples = samples.reshape(-1, frame.layout.nb_channels).T
                yield _to_float(samples).T
        except av.FFmpegError as error:
            raise ValueError(str(error)) from error

    def part(self, start: int, count: int) -> np.ndarray:
        if self.seeking is not None and start + count <= self.seeking.file.frames < _UNKNOWN:
            return self.seeking.part(start, count)
        found, position = [np.zeros((0, self.header.channels), np.float32)], 0
        for block in self.blocks():
            found.append(block[max(0, start - position) : max(0, start + count - position)])
            position += len(block)
            if position >= start + count:
                break
        return np.concatenate(found)


def _to_float(samples: np.ndarray) -> np.ndarray:
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
