"""Losses between outputs of networks: logits, spectra and waveforms."""

from .dispatch import DispatchLoss, dispatch_loss
from .linear import LinearDivergenceLoss, linear_divergence_loss
from .logits import DISTLoss, DKDLoss, JSDLoss, KLLoss, dist_loss, dkd_loss, jsd_loss, kl_loss
from .spectral import SiSNRLoss, SpectralLoss, si_snr_loss, spectral_loss
from .top_k import TopK, top_k

__all__ = [
    "DISTLoss",
    "DKDLoss",
    "DispatchLoss",
    "JSDLoss",
    "KLLoss",
    "LinearDivergenceLoss",
    "SiSNRLoss",
    "SpectralLoss",
    "TopK",
    "dispatch_loss",
    "dist_loss",
    "dkd_loss",
    "jsd_loss",
    "kl_loss",
    "linear_divergence_loss",
    "si_snr_loss",
    "spectral_loss",
    "top_k",
]
