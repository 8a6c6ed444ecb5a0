"""Training and test examples, made on the fly from folders of audio.

Example i of a dataset depends on (seed, i) and the files alone: not on the worker process that makes it, nor
on the examples before it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..constants import SAMPLE_RATE
from ..errors import InputError
from ..files import printable
from ..options import MixtureOptions
from .audio import read_segment
from .mixing import level_dbfs, mix, reverberate
from .sources import find_sources

_TRIES = 50  # how often a file is drawn anew because it is corrupt or its segment near-silent


class Mixtures(Dataset):
    """`count` mixtures of `length` samples: {"noisy": (N,), "clean": (N,)}."""

    def __init__(self, options: MixtureOptions, length: int, count: int, seed: int) -> None:
        for argument in ("clean", "noise"):
            if getattr(options, argument) is None:
                raise InputError(f"--{argument}: a folder is needed to make mixtures of speech and noise")
        self.options, self.length, self.count, self.seed = options, length, count, seed
        self.speech = SegmentPool(options.clean, "--clean", options.max_corrupt)
        self.noise = SegmentPool(options.noise, "--noise", options.max_corrupt)
        self.rirs = SegmentPool(options.rirs, "--rirs", options.max_corrupt) if options.rirs else None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        options, length = self.options, self.length
        rng = np.random.default_rng((self.seed, index))
        speech = _pad(self.speech.draw(length, rng, options.min_speech_level), length, rng)
        noise = _repeat(self.noise.draw(length, rng, options.min_noise_level), length)
        if self.rirs is not None and rng.random() < 0.5:
            speech = reverberate(speech, self.rirs.draw(SAMPLE_RATE, rng, response=True))
        snr = rng.uniform(*options.snr)
        noisy, clean = mix(speech, noise, snr, rng.uniform(*options.level))
        return {"noisy": noisy, "clean": clean}

    def name(self, index: int) -> str:
        return f"mixture-{index:04}"


class NoisySpeech(Dataset):
    """`count` segments of `length` samples of recordings without a clean counterpart: {"noisy": (N,)}."""

    def __init__(
        self, places: Path | Sequence[Path], length: int, count: int, seed: int, max_corrupt: float = 0.1
    ) -> None:
        self.length, self.count, self.seed = length, count, seed
        self.noisy = SegmentPool(places, "--noisy", max_corrupt)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        return {"noisy": _pad(self.noisy.draw(self.length, rng), self.length, rng)}


class PartlyLabelled(Dataset):
    """Examples of which some have clean speech: {"noisy": (N,), "clean": (N,), "has_clean": bool ()}.

    Example i is noisy speech alone, its "clean" zero, with probability `noisy_fraction`.
    """

    def __init__(self, labelled: Dataset, unlabelled: NoisySpeech, noisy_fraction: float) -> None:
        self.labelled, self.unlabelled, self.noisy_fraction = labelled, unlabelled, noisy_fraction

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        # A stream of its own: the two datasets draw from (seed, index).
        if np.random.default_rng((self.unlabelled.seed, index, 1)).random() >= self.noisy_fraction:
            return {**self.labelled[index], "has_clean": torch.tensor(True)}
        noisy = self.unlabelled[index]["noisy"]
        return {"noisy": noisy, "clean": torch.zeros_like(noisy), "has_clean": torch.tensor(False)}


class SegmentPool:
    """The audio files of folders or of tar shards, of which random segments are drawn.

    A file that cannot be read is reported once, skipped from then on, and counted; more than the fraction
    `max_corrupt` of such files is an error. The worker processes of a loader share the count.
    """

    def __init__(self, places: Path | Sequence[Path], argument: str, max_corrupt: float) -> None:
        self.argument, self.max_corrupt = argument, max_corrupt
        self.files = find_sources(places, argument)
        self.where = printable(places) if isinstance(places, Path) else ", ".join(map(printable, places))
        self._corrupt = torch.zeros(len(self.files), dtype=torch.bool).share_memory_()

    @property
    def corrupt_count(self) -> int:
        return int(self._corrupt.sum())

    def draw(self, length: int, rng: np.random.Generator, min_level: float = -90.0, response: bool = False) -> Tensor:
        """A segment of at most `length` samples at 16 kHz, of at least `min_level` dBFS, the mean of its channels.

        The `response` of a room begins where its file does, and is one of its channels: their mean is that of no place.
        """
        for _ in range(_TRIES):
            # Drawn before the file is looked at, so that later draws do not depend on what is known of it.
            index, drawn = rng.integers(len(self.files)), rng.random()
            if self._corrupt[index]:
                continue
            try:
                position, channel = (0.0, drawn) if response else (drawn, None)
                segment = read_segment(self.files[index], length, position, channel=channel)
            except InputError as error:
                self._report(index, error)
                continue
            if level_dbfs(segment) >= min_level:
                return segment
        raise InputError(
            f"{self.argument}: {_TRIES} segments in a row from {self.where} were unreadable or below {min_level:g} dBFS"
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


def _pad(segment: Tensor, length: int, rng: np.random.Generator) -> Tensor:
    """Silence around a segment that is too short, split at random."""
    before = int(rng.integers(length - segment.shape[-1] + 1))
    return torch.nn.functional.pad(segment, (before, length - segment.shape[-1] - before))


def _repeat(segment: Tensor, length: int) -> Tensor:
    return segment.repeat(-(-length // segment.shape[-1]))[:length]
