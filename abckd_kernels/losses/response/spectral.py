"""Losses between outputs of noise suppressors: compressed spectra, and the scale-invariant signal-to-noise ratio."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops.dots import dots
from ...ops.spectral import spectra, spectral
from ..common.features import batch_mean, weighted, without_autocast
from ..common.modules import module
from ..common.options import NotNegative, Positive, check_options
from ._signals import Signals, check_waveform, signal_pairs

ROUNDING = 1e-13  # of a sum of squares: what is less of it behind the mean's removal is no signal


def spectral_loss(
    student: Signals,
    teacher: Signals,
    *,
    power: Positive = 0.3,
    magnitude_weight: NotNegative = 0.7,
    complex_weight: NotNegative = 0.3,
    eps: Positive = 1e-12,
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights=None,
) -> Tensor:
    """Distance of spectra whose magnitudes are compressed by a power, without and with their phases.

    Per sample, with m = sqrt(|z|^2 + eps) and means over the valid bins:
    magnitude_weight mean (m_s^c - m_t^c)^2 + complex_weight mean |s m_s^(c-1) - t m_t^(c-1)|^2, c = power;
    L is the mean over samples.

    student         a spectrum, complex (B, F, T) or (B, C, F, T) as torch.stft gives it, or pairs (re, im) along one
                    more axis in float32, float64, bfloat16 or float16; or a list of spectra, of any sizes.
    teacher         the same shapes.
    eps             keeps gradients finite at silence, where they are up to eps^((power - 1) / 2) times the error,
                    16000 by default.
    lengths         (B,) valid frames, on the scale of padded_length; default: of the largest T.
    weights         of the pairs of spectra, default 1/n.

    The default weights 1 - lambda and lambda = 0.3 are the common ones. GTCRN's training loss (its repository's
    HybridLoss) has 70 and 30, and adds si_snr_loss(..., zero_mean=False, factor=1).

    float32; float64 if a spectrum is. Raises TypeError or ValueError that names the argument.
    """
    check_options(
        spectral_loss, power=power, magnitude_weight=magnitude_weight, complex_weight=complex_weight, eps=eps
    )  # fmt: skip
    found, ends = signal_pairs(student, teacher, lengths, padded_length, _check_spectrum)
    losses = []
    for s, t in found:
        errors = spectral(s, t, exponent=power, eps=eps, lengths=ends.lengths, padded_length=ends.padded_length)
        losses.append(batch_mean(magnitude_weight * errors.magnitude + complex_weight * errors.complex))
    return weighted(losses, weights, [[spectra.as_pairs(x) for x in pair] for pair in found])


def _check_spectrum(x: Tensor, name: str) -> torch.Size:
    spectra.check(x, name)
    return spectra.bins_shape(x)


def si_snr_loss(
    student: Signals,
    teacher: Signals,
    *,
    zero_mean: bool = True,
    factor: Positive = 10.0,
    eps: Positive = 1e-8,
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights=None,
) -> Tensor:
    """Negative scale-invariant signal-to-noise ratio of the student's waveform, the teacher's being the signal, in dB.

    With y = t (s . t) / (|t|^2 + eps): -factor log10(|y|^2 / (|s - y|^2 + eps) + eps), mean over samples (and
    channels). A silent student or teacher gives -factor log10(eps), and no gradient.

    student     waveforms (B, samples) or (B, C, samples); or a list of them.
    teacher     the same shapes.
    zero_mean   take the mean over valid samples off both first, as the definition does.
    factor      10 for dB.
    lengths     (B,) valid samples, on the scale of padded_length (default: samples); behind them nothing counts.
    weights     of the pairs of waveforms, default 1/n.

    GTCRN's HybridLoss has zero_mean=False and factor=1.

    float32; float64 if a waveform is. Raises TypeError or ValueError that names the argument.
    """
    check_options(si_snr_loss, zero_mean=zero_mean, factor=factor, eps=eps)
    found, ends = signal_pairs(student, teacher, lengths, padded_length, check_waveform)
    losses = []
    for s, t in found:
        count = ends.of(s)
        with without_autocast(s):
            ours, theirs = (ends.zeroed(x).flatten(0, -2) for x in (s, t))
            if count is not None and s.dim() == 3:
                count = count.repeat_interleave(s.shape[1])
            signal, noise = _projected(ours, theirs, count, zero_mean, eps)
            losses.append(batch_mean(-factor * torch.log10(signal / (noise + eps) + eps)))
    return weighted(losses, weights, found)


def _projected(s: Tensor, t: Tensor, count: Tensor | None, zero_mean: bool, eps: float) -> tuple[Tensor, Tensor]:
    """Energies (B,) of y, the projection of rows s onto rows t, and of s - y, in float64, from the rows' products.

    With e = t - s and a = s.t / (|t|^2 + eps), s - y = (1 - a) t - e; products of e keep the digits of a student that
    is nearly the teacher. Means come off the products: in float64 that leaves ten digits of a waveform that is a
    hundred times smaller than its mean.
    """
    _, tt, _, se, ee, sum_s, sum_e = dots(s[:, None], t[:, None])[:, 0].unbind(-1)
    te, silent = se + ee, tt <= 0
    if zero_mean:
        n = s.shape[1] if count is None else count.clamp_min(1)
        mean_e, mean_t, whole = sum_e / n, (sum_s + sum_e) / n, tt
        tt, te, ee = tt - n * mean_t.square(), te - n * mean_t * mean_e, ee - n * mean_e.square()
        silent = tt <= ROUNDING * whole
    tt, te = tt.masked_fill(silent, 0), te.masked_fill(silent, 0)
    rest = ((te + eps) / (tt + eps)).masked_fill(silent, 1)  # 1 - a
    signal = ((tt - te) / (tt + eps)).square() * tt
    return signal, (rest.square() * tt - 2 * rest * te + ee).clamp_min(0)


SpectralLoss = module(spectral_loss, "SpectralLoss")
SiSNRLoss = module(si_snr_loss, "SiSNRLoss")
