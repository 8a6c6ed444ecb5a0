"""Losses between outputs of noise suppressors: compressed spectra, and the scale-invariant signal-to-noise ratio."""

from __future__ import annotations

import torch
from torch import Tensor

from ...backends import refuse_second_derivative
from ...ops.spectral import spectra, spectral
from ..checks import check_number
from ..features import Configured, batch_mean, weighted
from .signals import Signals, check_waveform, signal_pairs, wide


def spectral_loss(
    student: Signals,
    teacher: Signals,
    *,
    exponent: float = 0.3,
    magnitude_weight: float = 0.7,
    complex_weight: float = 0.3,
    eps: float = 1e-12,
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights=None,
) -> Tensor:
    """Distance of spectra whose magnitudes are compressed by a power, without and with their phases.

    Per sample, with m = sqrt(|z|^2 + eps) and means over the valid bins:
    magnitude_weight mean (m_s^c - m_t^c)^2 + complex_weight mean |s m_s^(c-1) - t m_t^(c-1)|^2, c = exponent;
    L is the mean over samples.

    student         a spectrum, complex (B, F, T) or (B, C, F, T) as torch.stft gives it, or pairs (re, im) along one
                    more axis in float32, float64, bfloat16 or float16; or a list of spectra, of any sizes.
    teacher         the same shapes.
    eps             keeps gradients finite at silence, where they are up to eps^((exponent - 1) / 2) times the error,
                    16000 by default.
    lengths         (B,) valid frames, on the scale of padded_length; default: of the largest T.
    weights         of the pairs of spectra, default 1/n.

    The default weights 1 - lambda and lambda = 0.3 are the common ones. GTCRN's training loss (its repository's
    HybridLoss) has 70 and 30, and adds si_snr_loss(..., zero_mean=False, factor=1).

    float32; float64 if a spectrum is. Raises TypeError or ValueError that names the argument.
    """
    for name, weight in (("magnitude_weight", magnitude_weight), ("complex_weight", complex_weight)):
        check_number(name, weight, least=0)
    found, ends = signal_pairs(student, teacher, lengths, padded_length, _check_spectrum)
    losses = []
    for s, t in found:
        errors = spectral(s, t, exponent=exponent, eps=eps, lengths=ends.lengths, padded_length=ends.padded_length)
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
    factor: float = 10.0,
    eps: float = 1e-8,
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
    check_number("eps", eps, least=0, above=True)
    check_number("factor", factor, least=0, above=True)
    found, ends = signal_pairs(student, teacher, lengths, padded_length, check_waveform)
    losses = []
    for s, t in found:
        count = ends.of(s)
        with torch.autocast(s.device.type, enabled=False):
            dtype = torch.promote_types(wide(s).dtype, wide(t).dtype)
            rows = [ends.zeroed(x).to(dtype).flatten(0, -2) for x in (s, t)]
            if count is not None and s.dim() == 3:
                count = count.repeat_interleave(s.shape[1])
            signal, noise = _Projection.apply(*rows, count, zero_mean, eps)
            losses.append(batch_mean(-factor * torch.log10(signal / (noise + eps) + eps)))
    return weighted(losses, weights, found)


class _Projection(torch.autograd.Function):
    """Energies (B,) of y, the projection of rows s onto rows t, and of what is left, d = s - y.

    Kept for the backward is d, of the size of s; nothing else of that size is made. With e = |t|^2 + eps and
    a = (s . t) / e, means taken off: grad s = 2 g_noise d + t (2 g_signal a |t|^2 - 2 g_noise (d . t)) / e.
    """

    @staticmethod
    def forward(ctx, s, t, count, zero_mean, eps):
        n = s.shape[1] if count is None else count.clamp_min(1)
        mean_s, mean_t = ((x.sum(1) / n if zero_mean else x.new_zeros(len(x))) for x in (s, t))
        rest = _without(t.clone(), mean_t, count) if zero_mean else t.clone()
        energy = _energy(rest)
        gain = rest.mul_(s).sum(1) / (energy + eps)
        torch.addcmul(s, t, -gain[:, None], out=rest)
        if zero_mean:
            rest = _without(rest, mean_s - gain * mean_t, count)
        ctx.zero_mean, ctx.eps = zero_mean, eps
        ctx.save_for_backward(t, count, rest, mean_t, gain, energy)
        return gain.square() * energy, _energy(rest)

    @staticmethod
    def backward(ctx, of_signal, of_noise):
        t, count, rest, mean_t, gain, energy = ctx.saved_tensors
        # d . t = s . t - a |t|^2 = a eps
        along = 2 * gain * (of_signal * energy - of_noise * ctx.eps) / (energy + ctx.eps)
        grad = (rest * (2 * of_noise)[:, None]).addcmul_(t, along[:, None])
        if ctx.zero_mean:
            grad = _without(grad, along * mean_t, count)
        return refuse_second_derivative(grad), None, None, None, None


def _energy(x: Tensor) -> Tensor:
    """Sums of squares of rows, without the squares in memory."""
    return torch.linalg.vector_norm(x, dim=1).square()


def _without(x: Tensor, mean: Tensor, count: Tensor | None) -> Tensor:
    """`x` minus the mean of each row, in place; zero behind the first `count`."""
    x -= mean[:, None]
    return x if count is None else x.masked_fill_(torch.arange(x.shape[1], device=x.device) >= count[:, None], 0)


class SpectralLoss(Configured):
    """spectral_loss with its options chosen once."""

    function = staticmethod(spectral_loss)


class SiSNRLoss(Configured):
    """si_snr_loss with its options chosen once."""

    function = staticmethod(si_snr_loss)
