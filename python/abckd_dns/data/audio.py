"""Audio files in, waveforms at 16 kHz out, and back."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
import torchaudio
from torch import Tensor

from ..constants import SAMPLE_RATE
from ..errors import InputError


def resample(waveform: Tensor, source_rate: int, target_rate: int) -> Tensor:
    """Waveform (..., N) from one rate to the other, with ceil(N * target / source) samples."""
    if source_rate == target_rate:
        return waveform
    return _resampler(_round_rate(source_rate), _round_rate(target_rate))(waveform)


def _round_rate(rate: int) -> int:
    # The filter bank grows with rate / gcd(rates): gigabytes for a rate like 44099 Hz. Every common rate is a
    # multiple of 25 Hz; another one is resampled as its neighbour, at 8 kHz at most 0.16 % off.
    return max(25, round(rate / 25) * 25)


@functools.lru_cache(maxsize=16)
def _resampler(source_rate: int, target_rate: int) -> torchaudio.transforms.Resample:
    return torchaudio.transforms.Resample(source_rate, target_rate)


class Header(NamedTuple):
    """What a file says of itself: sample rate in Hz, samples per channel, and how libsndfile names their encoding."""

    rate: int
    channels: int
    length: int
    subtype: str


def read_header(path: Path) -> Header:
    try:
        found = soundfile.info(path)
    except (soundfile.SoundFileError, OSError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    return Header(found.samplerate, found.channels, found.frames, found.subtype)


def read(path: Path) -> tuple[Tensor, int]:
    """A whole file: waveform (channels, N) at its own sample rate, and that rate in Hz."""
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    _check(samples, path)
    return torch.from_numpy(samples.T.copy()), rate


def read_speech(path: Path) -> Tensor:
    """A whole file as mono at 16 kHz: waveform (N,)."""
    waveform, rate = read(path)
    return resample(waveform.mean(dim=0), rate, SAMPLE_RATE)


def read_segment(path: Path, length: int, position: float) -> Tensor:
    """At most `length` samples of mono at 16 kHz from one place of a file, without reading the rest.

    `position` in [0, 1) chooses the place among the possible ones. A shorter file is returned whole.
    """
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            wanted = math.ceil(length * rate / SAMPLE_RATE)
            file.seek(int(position * (max(file.frames - wanted, 0) + 1)))
            samples = file.read(wanted, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    _check(samples, path)
    return resample(torch.from_numpy(samples.mean(axis=1)), rate, SAMPLE_RATE)[:length]


def _check(samples: np.ndarray, path: Path) -> None:
    if not len(samples):
        raise InputError(f"cannot use {path}: it has no samples")
    if not np.isfinite(samples).all():
        raise InputError(f"cannot use {path}: it has samples that are not finite numbers")


def write(path: Path, waveform: Tensor, rate: int, subtype: str | None = None) -> None:
    """Waveform (N,) or (channels, N), limited to [-1, 1], to a file whose format is that of the suffix."""
    try:
        soundfile.write(path, waveform.clamp(-1, 1).cpu().numpy().T, rate, subtype=subtype)
    except (soundfile.SoundFileError, OSError, ValueError, TypeError) as error:
        raise InputError(f"cannot write {path}: {error}") from error
