"""Noisy speech out of clean speech, noise and room impulse responses. All waveforms are (N,)."""

from __future__ import annotations

import math

import torch
import torchaudio.functional
from torch import Tensor

from ..constants import SAMPLE_RATE

SILENCE_DBFS = -100.0

EARLY_SECONDS = 0.05
"""Reflections that come later than this after the direct sound blur speech; earlier ones are heard as part of it."""


def level_dbfs(waveform: Tensor) -> float:
    """Root mean square in dB relative to full scale, at least SILENCE_DBFS."""
    mean_square = waveform.double().square().mean().item() if waveform.numel() else 0.0
    return 10 * math.log10(max(mean_square, 10 ** (SILENCE_DBFS / 10)))


def reverberate(speech: Tensor, response: Tensor) -> Tensor:
    """Speech convolved with a room's response from its direct sound on; keeps length and level."""
    return _at_level_of(speech, _convolve(speech, from_direct_sound(response)))[0]


def reverberate_with_early(speech: Tensor, response: Tensor) -> tuple[Tensor, Tensor]:
    """As `reverberate`, and the part of it that comes within EARLY_SECONDS of the direct sound, equally loud in it."""
    response = from_direct_sound(response)
    early = response[: round(EARLY_SECONDS * SAMPLE_RATE)]
    return _at_level_of(speech, _convolve(speech, response), _convolve(speech, early))


def from_direct_sound(response: Tensor) -> Tensor:
    return response[response.abs().argmax() :]


def _convolve(speech: Tensor, response: Tensor) -> Tensor:
    return torchaudio.functional.fftconvolve(speech, response)[: speech.shape[-1]]


def _at_level_of(speech: Tensor, wet: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """All of them times what gives `wet` the level of `speech`."""
    gain = 10 ** ((level_dbfs(speech) - level_dbfs(wet)) / 20)
    return tuple(x * gain for x in (wet, *others))


def mix(
    speech: Tensor, noise: Tensor, snr_db: float, level: float, target: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mixture at `snr_db` and its `target`, by default its speech, both scaled so that the mixture lies at `level`
    dBFS.

    The level is lowered where the mixture would exceed full scale. Speech and noise must not be silent.
    """
    noisy = torchaudio.functional.add_noise(speech, noise, torch.tensor(snr_db))
    gain = 10 ** ((level - level_dbfs(noisy)) / 20)
    gain = min(gain, 0.99 / max(noisy.abs().max().item(), 1e-9))
    return noisy * gain, (speech if target is None else target) * gain
