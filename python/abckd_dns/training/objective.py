"""What a noise suppressor is trained for: `SpeechLoss`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from abckd_kernels.losses import spectral_loss

from ..network.stft import EXPONENT, POWER_FLOOR, Stft
from ..sisdr import sisdr

CEILING_DB = 30.0
"""No example has a higher SI-SDR: an easy one must not rule the batch."""

_INAUDIBLE = 1e-6  # energy of a waveform


class SpeechLoss(nn.Module):
    """Distance of an estimated waveform (B, N) from its target (B, N): a scalar, computed in float32.

    Squared distance of the compressed spectra (complex and magnitude, equally weighted) plus `sisdr_weight`
    times the negative scale-invariant SDR in dB. Finite, with finite gradients, for silent targets and
    estimates. No gradient reaches the target.
    """

    def __init__(self, sisdr_weight: float = 0.05) -> None:
        super().__init__()
        self.sisdr_weight = sisdr_weight
        self.stft = Stft()

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(estimate.device.type, enabled=False):
            estimate, target = estimate.float(), target.detach().float()
            spectral = spectral_loss(
                self.stft(estimate),
                self.stft(target),
                power=EXPONENT,
                magnitude_weight=1.0,
                complex_weight=0.5,
                eps=POWER_FLOOR,
            )
            ratio = sisdr(estimate, target, ceiling_db=CEILING_DB, floor=_INAUDIBLE)
            return spectral - self.sisdr_weight * ratio.mean()
