"""What recordings go through besides noise, as augmentation: each is drawn anew for every example, from (seed, i)
alone.

An augmentation is a function (noisy (N,), clean (N,), rng) -> (noisy, clean) of tensors at 16 kHz and a
`numpy.random.Generator`, from which it takes all its randomness. A user's own is named package.module:function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torchaudio.functional
from torch import Tensor
from torch.utils.data import Dataset

from ..constants import SAMPLE_RATE
from ..errors import InputError
from ..options import parse_augmentation
from ..own_code import function_of
from .codec import CODECS, through_codec
from .mixing import level_dbfs

Augmentation = Callable[[Tensor, Tensor, np.random.Generator], tuple[Tensor, Tensor]]

_LEVELS = (-45.0, -10.0)  # dBFS
_CLIPPED = (2.0, 15.0)  # dB below the peak
_LOWEST, _HIGHEST = (50.0, 300.0), (2500.0, 7000.0)  # Hz, of the edges of a band


def level(noisy: Tensor, clean: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Both at another level, so that the noisy speech lies at -45 to -10 dBFS, below full scale."""
    gain = 10 ** ((rng.uniform(*_LEVELS) - level_dbfs(noisy)) / 20)
    gain = min(gain, 0.99 / max(noisy.abs().max().item(), 1e-9))
    return noisy * gain, clean * gain


def clip(noisy: Tensor, clean: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Noisy speech whose microphone is overdriven: cut off 2 to 15 dB below its peak. The target is not."""
    limit = noisy.abs().max().item() * 10 ** (-rng.uniform(*_CLIPPED) / 20)
    return noisy.clamp(-limit, limit), clean


def band(noisy: Tensor, clean: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Both through a device of limited band, 50 to 300 Hz up to 2.5 to 7 kHz: the target holds nothing that is lost."""
    low, high = rng.uniform(*_LOWEST), math.exp(rng.uniform(*np.log(_HIGHEST)))
    both = torch.stack((noisy, clean))
    both = torchaudio.functional.highpass_biquad(both, SAMPLE_RATE, low)
    for _ in range(2):  # 24 dB per octave
        both = torchaudio.functional.lowpass_biquad(both, SAMPLE_RATE, high)
    return both[0], both[1]


def codec(noisy: Tensor, clean: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Noisy speech through a lossy codec of calls and recordings (`codec.CODECS`); the target is as it was."""
    chosen = CODECS[rng.integers(len(CODECS))]
    rate = chosen.bit_rates[rng.integers(len(chosen.bit_rates))]
    return through_codec(noisy, chosen, rate), clean


_BUILT_IN: dict[str, Augmentation] = {"level": level, "clip": clip, "band": band, "codec": codec}


class Augmented(Dataset):
    """Examples of which each goes through some of `augmentations`, written NAME or NAME=PROBABILITY, in their order."""

    def __init__(self, examples: Dataset, augmentations: Sequence[str], seed: int) -> None:
        """Raises InputError that blames --augment."""
        self.examples, self.seed = examples, seed
        self.steps = []
        for text in augmentations:
            name, probability = parse_augmentation(text)
            self.steps.append((text, _BUILT_IN.get(name) or function_of(name, f"--augment {text}"), probability))

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        example = dict(self.examples[index])
        noisy = example["noisy"]
        clean = example.get("clean", noisy)
        for number, (text, augmentation, probability) in enumerate(self.steps):
            # A stream for each: what one draws must not change another.
            rng = np.random.default_rng((self.seed, index, 3, number))
            if rng.random() < probability:
                result = augmentation(noisy, clean, rng)
                _check(result, noisy, text, index)
                noisy, clean = result
        example["noisy"] = noisy
        if "clean" in example:
            example["clean"] = clean
        return example


def _check(result: object, noisy: Tensor, text: str, index: int) -> None:
    if not (isinstance(result, tuple | list) and len(result) == 2 and all(isinstance(x, Tensor) for x in result)):
        raise InputError(f"--augment {text}: expected (noisy, clean), two tensors, got {type(result).__name__}")
    for name, x in zip(("noisy", "clean"), result, strict=True):
        if x.shape != noisy.shape or x.dtype != noisy.dtype:
            raise InputError(
                f"--augment {text}: expected {name} {tuple(noisy.shape)} {noisy.dtype}, got {tuple(x.shape)} {x.dtype}"
            )
        if not x.isfinite().all():
            raise InputError(f"--augment {text}: {name} of example {index} has values that are not finite")
