"""Training and test examples, made on the fly from folders of audio.

Example i of a dataset depends on (seed, i) and the files alone: not on the worker process that makes it, nor
on the examples before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..constants import SAMPLE_RATE
from ..errors import InputError
from ..options import MixtureOptions
from .mixing import mix, reverberate, reverberate_with_early
from .pools import PairPool, SegmentPool, pad, repeat


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
        speech = target = pad(self.speech.draw(length, rng, options.min_speech_level), length, rng)
        noise = repeat(self.noise.draw(length, rng, options.min_noise_level), length)
        if self.rirs is not None and rng.random() < 0.5:
            response = self.rirs.draw(SAMPLE_RATE, rng, response=True)
            if options.rir_target == "early":
                speech, target = reverberate_with_early(speech, response)
            else:
                speech = target = reverberate(speech, response)
        snr = rng.uniform(*options.snr)
        noisy, clean = mix(speech, noise, snr, rng.uniform(*options.level), target)
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
        return {"noisy": pad(self.noisy.draw(self.length, rng), self.length, rng)}


class PairSegments(Dataset):
    """`count` segments of `length` samples of recordings and their clean speech: {"noisy": (N,), "clean": (N,)}."""

    def __init__(self, pool: PairPool, length: int, count: int, seed: int, min_level: float) -> None:
        self.pool, self.length, self.count, self.seed, self.min_level = pool, length, count, seed, min_level

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        noisy, clean = pad(torch.stack(self.pool.draw(self.length, rng, self.min_level)), self.length, rng)
        return {"noisy": noisy, "clean": clean}


class Blend(Dataset):
    """Example i is that of `second` with probability `share`, else that of `first`."""

    def __init__(self, first: Dataset, second: Dataset, share: float, seed: int) -> None:
        self.first, self.second, self.share, self.seed = first, second, share, seed

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        # A stream of its own: the datasets draw from (seed, index), PartlyLabelled from (seed, index, 1).
        is_second = np.random.default_rng((self.seed, index, 2)).random() < self.share
        return (self.second if is_second else self.first)[index]


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
