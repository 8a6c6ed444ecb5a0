"""The scale-invariant signal-to-distortion ratio, for losses and metrics."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sisdr(estimate: Tensor, target: Tensor, ceiling_db: float = math.inf, floor: float = 0.0) -> Tensor:
    """In dB per waveform, (..., N) to (...): the energy of the estimate's projection on its target over the rest.

    ceiling_db    no value is higher: a loss wants finite gradients at a perfect estimate.
    floor         added to all energies: with it silence has 0 dB, without it none that is defined.
    """
    target_energy = target.square().sum(-1)
    scale = (estimate * target).sum(-1) / (target_energy + floor)
    wanted = scale.square() * target_energy
    unwanted = (estimate - scale.unsqueeze(-1) * target).square().sum(-1)
    unwanted = unwanted + 10 ** (-ceiling_db / 10) * wanted
    return 10 * torch.log10((wanted + floor) / (unwanted + floor))
