"""Waveforms into audio files, block by block."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from torch import Tensor

from ..errors import InputError
from ..files import printable, write_atomically
from .audio import Header
from .resampling import resample_blocks
from .sources import READ_ONLY, WRITABLE

_AT_ONCE = 8192  # samples per call: of minutes at once libvorbis overflows the stack
_LARGEST_WAV = 4_000_000_000  # bytes; its sizes have 32 bits
_FLOATS = ("FLOAT", "DOUBLE")
_COARSE = ("", "PCM_S8", "PCM_U8", "PCM_16", "ULAW", "ALAW", "VORBIS", "OPUS", "MPEG_LAYER_III")
_OPUS_RATE = 48_000


class Format(NamedTuple):
    """How a file is written, and what is to be said of that."""

    path: Path
    container: str
    subtype: str
    rate: int
    remark: str = ""

    @property
    def holds_any_value(self) -> bool:
        """Whether values beyond full scale stay what they are."""
        return self.subtype in _FLOATS


def choose_format(path: Path, header: Header) -> Format:
    """That of the suffix, with the encoding of the samples in `header` where the format has it; another one, with
    a remark, if nothing can be written in it, or not at this rate or with so many channels. Raises InputError."""
    suffix = path.suffix.lower()
    container = WRITABLE.get(suffix)
    if container == "WAV" and (header.length or 0) * header.channels * 4 > _LARGEST_WAV:
        container = "RF64"
    wishes = []
    if container is not None:
        if suffix == ".opus":
            wishes = [("OPUS", header.rate), ("OPUS", _OPUS_RATE)]
        else:
            # An encoding that this format does not have becomes its usual one, or one that is as fine.
            fine = [] if header.subtype in _COARSE else ["PCM_24"]
            usual = soundfile.default_subtype(container)
            wishes = [(subtype, header.rate) for subtype in (header.subtype, *fine, usual)]
            wishes += [(usual, _OPUS_RATE)]
    for subtype, rate in wishes:
        if _is_possible(container, subtype, rate, header.channels):
            changed = f"{printable(path)}: written at {rate} Hz, as {suffix} has no {header.rate} Hz"
            return Format(path, container, subtype, rate, changed if rate != header.rate else "")
    if suffix and container is None and suffix not in READ_ONLY:
        raise InputError(f"cannot write {printable(path)}: {suffix} is no audio format, as {' '.join(WRITABLE)}")
    subtype = header.subtype if header.subtype in _FLOATS else "PCM_16" if header.subtype in _COARSE else "PCM_24"
    where = path.with_name(path.name + ".wav")  # a name that no other recording has
    why = f"{suffix or 'a name without suffix'} cannot be written" + (
        f" with {header.channels} channels at {header.rate} Hz" if container else ""
    )
    return Format(where, "WAV", subtype, header.rate, f"{printable(path)}: written as {printable(where.name)}; {why}")


def _is_possible(container: str, subtype: str, rate: int, channels: int) -> bool:
    if not subtype or not soundfile.check_format(container, subtype):
        return False
    try:
        with soundfile.SoundFile(io.BytesIO(), "w", rate, channels, subtype, format=container):
            return True
    except (soundfile.SoundFileError, ValueError, TypeError):
        return False


class Clipping(NamedTuple):
    """How many of how many values were beyond full scale, 1, and the largest."""

    beyond: int
    values: int
    peak: float


def write_blocks(form: Format, channels: int, make: Callable[[], Iterable[Tensor]], rate: int, scale: bool) -> Clipping:
    """What `make()` gives, blocks (channels, n) at `rate` Hz, into the file `form`, whole or not at all.

    Values beyond full scale are limited where the format cannot hold them. With `scale` the whole recording is then
    made anew and scaled down to fit. Raises InputError; also for values that are not finite.
    """
    found = _write_file(form, channels, make, rate, 1.0)
    if scale and found.beyond and not form.holds_any_value:
        _write_file(form, channels, make, rate, 0.999 / found.peak)
    return found


def _write_file(form: Format, channels: int, make: Callable[[], Iterable[Tensor]], rate: int, gain: float) -> Clipping:
    found = []

    def write(unfinished: Path) -> None:
        found.append(_write(unfinished, form, channels, _checked(resample_blocks(make(), rate, form.rate), form), gain))

    write_atomically(form.path, write)
    return found[0]


def _checked(blocks: Iterable[Tensor], form: Format) -> Iterator[Tensor]:
    for block in blocks:
        if not block.isfinite().all():
            raise InputError(f"cannot write {printable(form.path)}: it would have values that are not finite numbers")
        yield block


def _write(path: Path, form: Format, channels: int, blocks: Iterable[Tensor], gain: float) -> Clipping:
    beyond, values, peak = 0, 0, 0.0
    try:
        name = os.fsencode(path)
        with soundfile.SoundFile(name, "w", form.rate, channels, form.subtype, format=form.container) as file:
            for block in blocks:
                block = block * gain
                size = block.abs()
                beyond += int((size > 1).sum())
                values += block.numel()
                peak = max(peak, size.max().item() if block.numel() else 0.0)
                if not form.holds_any_value:
                    block = block.clamp(-1, 1)
                for part in block.cpu().T.split(_AT_ONCE):
                    file.write(np.ascontiguousarray(part.numpy()))
    except (soundfile.SoundFileError, OSError, ValueError, TypeError) as error:
        raise InputError(f"cannot write {printable(form.path)}: {error}") from error
    return Clipping(beyond, values, peak)


def write(path: Path, waveform: Tensor, rate: int) -> None:
    """Waveform (N,) or (channels, N), limited to [-1, 1], to a file whose format is that of the suffix."""
    samples = torch.atleast_2d(waveform)
    form = choose_format(path, Header(rate, len(samples), samples.shape[-1], "", ""))
    write_blocks(form, len(samples), lambda: [samples], rate, scale=False)
