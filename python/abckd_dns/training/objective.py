"""What a noise suppressor is trained for: `SpeechLoss`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..network.stft import Stft, compress


class SpeechLoss(nn.Module):
    """Distance of an estimated waveform (B, N) from its target (B, N): a scalar, computed in float32.

    Squared distance of the compressed spectra (complex and magnitude, equally weighted) plus `sisdr_weight`
    times the negative scale-invariant SDR in dB. Finite, with finite gradients, for silent targets and
    estimates.
    """

    def __init__(self, sisdr_weight: float = 0.05) -> None:
        super().__init__()
        self.sisdr_weight = sisdr_weight
        self.stft = Stft()

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(estimate.device.type, enabled=False):
            estimate, target = estimate.float(), target.float()
            real, imaginary, magnitude = (
                (a - b).square().mean()
                for a, b in zip(compress(self.stft(estimate)), compress(self.stft(target)), strict=True)
            )
            return 0.5 * (real + imaginary) + magnitude - self.sisdr_weight * soft_sisdr(estimate, target).mean()


def soft_sisdr(estimate: Tensor, target: Tensor, ceiling_db: float = 30.0) -> Tensor:
    """Scale-invariant SDR in dB per waveform, (B, N) to (B,); at most `ceiling_db`, and 0 for silence.

    The ceiling keeps an easy example from ruling the batch, and the gradient finite at a perfect estimate.
    """
    floor = 1e-6  # energy of an inaudible waveform
    target_energy = target.square().sum(-1)
    scale = (estimate * target).sum(-1) / (target_energy + floor)
    wanted = scale.square() * target_energy
    unwanted = (estimate - scale.unsqueeze(-1) * target).square().sum(-1)
    unwanted = unwanted + 10 ** (-ceiling_db / 10) * wanted
    return 10 * torch.log10((wanted + floor) / (unwanted + floor))
