"""Files of which random segments are drawn, where some of them may be bad."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..files import printable
from .audio import read_header, read_segment
from .mixing import level_dbfs
from .pairs import Pair, find_pairs
from .sources import find_sources

_TRIES = 50  # how often a file is drawn anew because it is corrupt or its segment near-silent

T = TypeVar("T")


class Pool:
    """What cannot be read is reported once, skipped from then on, and counted; more than the fraction `max_corrupt` of
    it is an error. The worker processes of a loader share the count."""

    def __init__(self, files: Sequence, argument: str, where: str, max_corrupt: float) -> None:
        self.files, self.argument, self.where, self.max_corrupt = files, argument, where, max_corrupt
        self._corrupt = torch.zeros(len(files), dtype=torch.bool).share_memory_()

    @property
    def corrupt_count(self) -> int:
        return int(self._corrupt.sum())

    def inventory(self) -> str:
        """Their number, and a digest of their names: equal for equal files of a folder that has another name."""
        names = [os.fsencode(self._name(file)) for file in self.files]
        root = os.path.commonpath([os.path.dirname(name) for name in names])
        digest = hashlib.sha256(b"\0".join(os.path.relpath(name, root) for name in names))
        return f"{len(names)} files, {digest.hexdigest()[:16]}"

    def _name(self, file: Any) -> str:
        return str(file)

    def _choose(
        self, rng: np.random.Generator, read: Callable[[int, float], T], level: Callable[[T], float], least: float
    ) -> T:
        """What `read` gives of a random file and a number in [0, 1), if its level is at least `least` dBFS."""
        for _ in range(_TRIES):
            # Drawn before the file is looked at, so that later draws do not depend on what is known of it.
            index, drawn = rng.integers(len(self.files)), rng.random()
            if self._corrupt[index]:
                continue
            try:
                segment = read(index, drawn)
            except InputError as error:
                self._report(index, error)
                continue
            if level(segment) >= least:
                return segment
        raise InputError(
            f"{self.argument}: {_TRIES} segments in a row from {self.where} were unreadable or below {least:g} dBFS"
        )

    def _report(self, index: int, error: InputError) -> None:
        self._corrupt[index] = True
        warnings.warn(f"{self.argument}: skipped for the rest of the run: {error}", stacklevel=2)
        corrupt, total = self.corrupt_count, len(self.files)
        if corrupt > self.max_corrupt * total:
            raise InputError(
                f"{self.argument}: {corrupt} of {total} files in {self.where} cannot be read, more than "
                f"--max-corrupt {self.max_corrupt:g} allows; the last one: {error}"
            )


class SegmentPool(Pool):
    """The audio files of folders or of tar shards."""

    def __init__(self, places: Path | Sequence[Path], argument: str, max_corrupt: float) -> None:
        where = printable(places) if isinstance(places, Path) else ", ".join(map(printable, places))
        super().__init__(find_sources(places, argument), argument, where, max_corrupt)

    def draw(self, length: int, rng: np.random.Generator, min_level: float = -90.0, response: bool = False) -> Tensor:
        """A segment of at most `length` samples at 16 kHz, of at least `min_level` dBFS, the mean of its channels.

        The `response` of a room begins where its file does, and is one of its channels: their mean is that of no place.
        """

        def read(index: int, drawn: float) -> Tensor:
            position, channel = (0.0, drawn) if response else (drawn, None)
            return read_segment(self.files[index], length, position, channel=channel)

        return self._choose(rng, read, level_dbfs, min_level)


class PairPool(Pool):
    """The pairs of folders, of which the same segment of both sides is drawn."""

    files: list[Pair]

    def __init__(
        self, places: Sequence[Path], argument: str, max_corrupt: float, sides: tuple[str, str] | None = None
    ) -> None:
        pairs = [pair for place in places for pair in find_pairs(place, argument, sides, part="train")]
        super().__init__(pairs, argument, ", ".join(map(printable, places)), max_corrupt)
        self._agree: set[int] = set()

    def _name(self, file: Pair) -> str:
        return file.noisy

    def draw(self, length: int, rng: np.random.Generator, min_level: float = -90.0) -> tuple[Tensor, Tensor]:
        """Noisy and clean segment, of at most `length` samples at 16 kHz; the clean one has at least `min_level` dBFS.

        Two files of unequal rate or length are a corrupt pair: nobody knows how they lie to each other.
        """

        def read(index: int, position: float) -> tuple[Tensor, Tensor]:
            pair = self.files[index]
            if index not in self._agree:
                _check_agreement(pair)
                self._agree.add(index)
            noisy, clean = (read_segment(path, length, position) for path in (pair.noisy, pair.clean))
            if len(noisy) != len(clean):
                raise InputError(f"{pair.noisy} and {pair.clean} are of unequal length")
            return noisy, clean

        return self._choose(rng, read, lambda both: level_dbfs(both[1]), min_level)


def _check_agreement(pair: Pair) -> None:
    noisy, clean = (read_header(path) for path in (pair.noisy, pair.clean))
    if noisy.rate != clean.rate:
        raise InputError(f"{pair.noisy} is sampled at {noisy.rate} Hz, {pair.clean} at {clean.rate} Hz")
    if None not in (noisy.length, clean.length) and noisy.length != clean.length:
        seconds = [header.length / header.rate for header in (noisy, clean)]
        raise InputError(f"{pair.noisy} has {seconds[0]:.3f} s, but {pair.clean} {seconds[1]:.3f} s")


def pad(segment: Tensor, length: int, rng: np.random.Generator) -> Tensor:
    """Silence around (..., n) that is too short, split at random."""
    before = int(rng.integers(length - segment.shape[-1] + 1))
    return torch.nn.functional.pad(segment, (before, length - segment.shape[-1] - before))


def repeat(segment: Tensor, length: int) -> Tensor:
    return segment.repeat(-(-length // segment.shape[-1]))[:length]
