"""What the networks of this package have in common: a causal estimate of a complex mask over the STFT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .stft import Stft, compress


def call(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)


Run = Callable[[nn.Module, Tensor], Tensor]
"""Applies one of the `stages` of a network to its input: over all frames at once, as `call`, or step by step."""


class MaskNetwork(nn.Module):
    """Noisy waveform (B, N) at 16 kHz to enhanced waveform (B, N).

    Causal: sample n of the output depends on no sample after n + N_FFT. All features are (B, C, T, F); those of
    `distillation_layers` can be distilled by these names.
    """

    config: Any
    """What a checkpoint keeps: a dataclass, from which the network can be made anew (load.FAMILIES)."""

    def __init__(self) -> None:
        super().__init__()
        self.stft = Stft()

    def forward(self, waveform: Tensor) -> Tensor:
        spectrum = self.stft(waveform)
        mask = self.estimate_mask(torch.stack(compress(spectrum), dim=1))
        enhanced = spectrum * torch.complex(mask[:, 0], mask[:, 1])
        return self.stft.inverse(enhanced, waveform.shape[-1])

    @property
    def distillation_layers(self) -> tuple[str, ...]:
        """The layers that are distilled unless the user names others."""
        raise NotImplementedError

    @property
    def stages(self) -> dict[str, nn.Module]:
        """The parts that relate frames to each other, by name, in the order in which they run.

        Each has, besides forward over all frames at once, `step(x, past)` -> (output, past) over the next ones.
        """
        raise NotImplementedError

    def estimate_mask(self, x: Tensor, run: Run = call) -> Tensor:
        """Compressed spectra (B, 3, T, BINS) to the complex mask (B, 2, T, BINS), real part before imaginary part.

        `run` applies one of the `stages` to its input; they alone relate one frame to another.
        """
        raise NotImplementedError
