"""Noisy speech out of clean speech, noise and room impulse responses. All waveforms are (N,)."""

from __future__ import annotations

import math

import torch
import torchaudio.functional
from torch import Tensor

SILENCE_DBFS = -100.0


def level_dbfs(waveform: Tensor) -> float:
    """Root mean square in dB relative to full scale, at least SILENCE_DBFS."""
    mean_square = waveform.double().square().mean().item() if waveform.numel() else 0.0
    return 10 * math.log10(max(mean_square, 10 ** (SILENCE_DBFS / 10)))


def reverberate(speech: Tensor, response: Tensor) -> Tensor:
    """Speech convolved with a room's response from its direct sound on; keeps length and level."""
    response = response[response.abs().argmax() :]
    wet = torchaudio.functional.fftconvolve(speech, response)[: speech.shape[-1]]
    return wet * 10 ** ((level_dbfs(speech) - level_dbfs(wet)) / 20)


def mix(speech: Tensor, noise: Tensor, snr_db: float, level: float) -> tuple[Tensor, Tensor]:
    """Mixture at `snr_db` and its speech part, both scaled so that the mixture lies at `level` dBFS.

    The level is lowered where the mixture would exceed full scale. Speech and noise must not be silent.
    """
    noisy = torchaudio.functional.add_noise(speech, noise, torch.tensor(snr_db))
    gain = 10 ** ((level - level_dbfs(noisy)) / 20)
    gain = min(gain, 0.99 / max(noisy.abs().max().item(), 1e-9))
    return noisy * gain, speech * gain
