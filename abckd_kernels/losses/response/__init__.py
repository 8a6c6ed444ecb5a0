"""Losses between outputs of networks: logits, spectra and waveforms."""

from .dispatch import DispatchLoss, dispatch_loss
from .spectral import SiSNRLoss, SpectralLoss, si_snr_loss, spectral_loss

__all__ = ["DispatchLoss", "SiSNRLoss", "SpectralLoss", "dispatch_loss", "si_snr_loss", "spectral_loss"]
