"""Losses on spectra and waveforms as their users write them, in eager PyTorch; arguments are those of the losses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from . import Case


def spectral(student: Tensor, teacher: Tensor) -> Tensor:
    """As GTCRN's HybridLoss without its waveform term, of complex spectra, with the weights 0.7 and 0.3."""
    s, t = (torch.view_as_real(x) if x.is_complex() else x for x in (student, teacher.detach()))
    s_real, s_imag, t_real, t_imag = s[..., 0], s[..., 1], t[..., 0], t[..., 1]
    s_mag = torch.sqrt(s_real**2 + s_imag**2 + 1e-12)
    t_mag = torch.sqrt(t_real**2 + t_imag**2 + 1e-12)
    real = functional.mse_loss(s_real / s_mag**0.7, t_real / t_mag**0.7)
    imag = functional.mse_loss(s_imag / s_mag**0.7, t_imag / t_mag**0.7)
    magnitude = functional.mse_loss(s_mag**0.3, t_mag**0.3)
    return 0.7 * magnitude + 0.3 * (real + imag)


def si_snr(student: Tensor, teacher: Tensor) -> Tensor:
    """As generally defined."""
    s = student - student.mean(-1, keepdim=True)
    t = teacher.detach()
    t = t - t.mean(-1, keepdim=True)
    signal = (s * t).sum(-1, keepdim=True) * t / (t.square().sum(-1, keepdim=True) + 1e-8)
    noise = s - signal
    ratio = signal.square().sum(-1) / (noise.square().sum(-1) + 1e-8)
    return -10 * torch.log10(ratio + 1e-8).mean()


def dispatch(
    student: Tensor, teacher: Tensor, clean: Tensor, patch_bands: int = 64, share: float = 0.5
) -> Tensor:  # fmt: skip
    """As DISPATCH's dispatch_L2, of waveforms."""
    window = torch.hann_window(512, device=student.device, dtype=student.dtype)

    def patches(x):
        x = torch.stft(x, 512, 128, window=window, return_complex=True).abs()
        count = -(-x.shape[1] // patch_bands)
        x = functional.pad(x, (0, 0, 0, count * patch_bands - x.shape[1]))
        return x.reshape(x.shape[0], count, patch_bands, -1)

    s, t, y = patches(student), patches(teacher.detach()), patches(clean)

    def error(a, b):
        return (a - b).square().mean(2)

    worse = error(s.detach(), y) - error(t, y)
    number = worse[0].numel()
    least = worse.flatten(1).topk(max(int(number * share), 1)).values[:, -1]
    mask = worse >= least[:, None, None]
    return (mask * error(s, t)).sum() / (worse.numel() * share)


CASES = {
    "spectral": Case(spectral, half=False),
    "si_snr": Case(si_snr),
    "dispatch": Case(
        dispatch,
        convention={"convention": "published"},
        extra=lambda student, teacher: {"clean": 0.5 * teacher},
    ),
}
