"""Losses on waveforms and spectra in NumPy float64, one sample at a time, written from their definitions."""

import numpy as np


def spectral(student, teacher, power=0.3, magnitude_weight=0.7, complex_weight=0.3, eps=1e-12, **_):
    """Of pairs (re, im) along the last axis."""
    per_sample = []
    for s, t in zip(student, teacher, strict=True):
        (a, z), (b, w) = ((np.sqrt((x**2).sum(-1) + eps), x[..., 0] + 1j * x[..., 1]) for x in (s, t))
        magnitude = ((a**power - b**power) ** 2).mean()
        difference = z / a ** (1 - power) - w / b ** (1 - power)
        per_sample.append(magnitude_weight * magnitude + complex_weight * (abs(difference) ** 2).mean())
    return np.mean(per_sample)


def si_snr(student, teacher, zero_mean=True, factor=10.0, eps=1e-8, **_):
    """Over the last axis."""
    rows = []
    for s, t in zip(*(x.reshape(-1, x.shape[-1]) for x in (student, teacher)), strict=True):
        if zero_mean:
            s, t = s - s.mean(), t - t.mean()
        signal = (s @ t) * t / (t @ t + eps)
        noise = s - signal
        rows.append(-factor * np.log10((signal @ signal) / (noise @ noise + eps) + eps))
    return np.mean(rows)


def dispatch(student, teacher, clean, patch_bands=64, share=0.5, convention="paper", **_):
    """Of spectrograms."""
    losses = []
    for s, t, y in zip(*(abs(x) for x in (student, teacher, clean)), strict=True):
        bands, frames = s.shape
        own, worse = [], []
        for frame in range(frames):
            for first in range(0, bands, patch_bands):
                part = [x[first : first + patch_bands, frame] for x in (s, t, y)]
                size = patch_bands if convention == "published" else len(part[0])
                to_teacher, to_clean, of_teacher = (
                    ((part[i] - part[j]) ** 2).sum() / size for i, j in ((0, 1), (0, 2), (1, 2))
                )
                own.append(to_teacher)
                worse.append(to_clean - of_teacher)
        own, worse = np.array(own), np.array(worse)
        least = np.sort(worse)[::-1][max(int(len(worse) * share), 1) - 1]
        if convention == "published":
            losses.append(own[worse >= least].sum() / (len(own) * share))
        else:
            chosen = own[(worse >= least) & (worse > 0)]
            losses.append(chosen.mean() if len(chosen) else 0.0)
    return np.mean(losses)


def spectrogram(x, n_fft, hop_length):
    """Magnitudes of (B, samples), (B, F, T), with zeros behind the ends and a periodic Hann window."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    x = np.pad(x, ((0, 0), (n_fft // 2, n_fft // 2)))
    frames = [x[:, first : first + n_fft] * window for first in range(0, x.shape[1] - n_fft + 1, hop_length)]
    return abs(np.fft.rfft(np.stack(frames, -1), axis=1))


def dispatch_of_waveforms(student, teacher, clean, n_fft=512, hop_length=128, **options):
    return dispatch(*(spectrogram(x, n_fft, hop_length) for x in (student, teacher, clean)), **options)
