"""Measures of enhanced speech by frames: segmental SNR, log-spectral distance, and the composite measures.

Y. Hu, P. Loizou, Evaluation of objective quality measures for speech enhancement, IEEE TASLP 16(1), 2008: the composite
measures are linear in PESQ, the log-likelihood ratio of linear predictors (LLR), the weighted spectral slope (WSS) of
Klatt (1982), and the segmental SNR. As everywhere since SEGAN (Pascual et al., 2017), PESQ is the wideband one.

Waveforms are float64 (N,) at 16 kHz.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg import solve_toeplitz
from scipy.signal.windows import hann

from ..constants import SAMPLE_RATE

_FRAME = 480  # 30 ms
_HOP = _FRAME // 4
_ORDER = 16  # of the linear predictors
_KEPT = 0.95  # of the frames, those with the least LLR or WSS: the others are outliers
_TINY = 1e-10


def segmental_snr(estimate: np.ndarray, target: np.ndarray) -> float:
    """Mean over frames of the SNR in dB, each limited to -10 .. 35. NaN for less than two frames."""
    a, b = _frames(estimate), _frames(target)
    if not len(a):
        return math.nan
    signal, noise = np.square(b).sum(1), np.square(b - a).sum(1)
    return float(np.clip(10 * np.log10(signal / (noise + _TINY) + _TINY), -10, 35).mean())


def log_spectral_distance(estimate: np.ndarray, target: np.ndarray) -> float:
    """Mean over frames of 32 ms, half of it overlapping, of the root mean square over frequencies of the difference of
    levels in dB; levels 60 dB below the target's highest, and lower ones, count as equal. NaN for less than two frames.
    """
    a, b = (np.square(np.abs(np.fft.rfft(_frames(x, 512, 256)))) for x in (estimate, target))
    if not len(a):
        return math.nan
    floor = 1e-6 * b.max() + _TINY
    difference = 10 * np.log10(np.maximum(a, floor) / np.maximum(b, floor))
    return float(np.sqrt(np.square(difference).mean(1)).mean())


def composite(estimate: np.ndarray, target: np.ndarray, pesq: float) -> tuple[float, float, float]:
    """CSIG, CBAK and COVL: what listeners would say of the speech, the background and the whole, 1 to 5.

    NaN where `pesq` is, or for less than two frames.
    """
    a, b = _frames(estimate), _frames(target)
    if not len(a) or math.isnan(pesq):
        return math.nan, math.nan, math.nan
    ratio, slope = _least(_likelihood_ratios(a, b)), _least(_spectral_slopes(a, b))
    values = (
        3.093 - 1.029 * ratio + 0.603 * pesq - 0.009 * slope,
        1.634 + 0.478 * pesq - 0.007 * slope + 0.063 * segmental_snr(estimate, target),
        1.594 + 0.805 * pesq - 0.512 * ratio - 0.007 * slope,
    )
    return tuple(float(np.clip(value, 1, 5)) for value in values)


def _frames(waveform: np.ndarray, size: int = _FRAME, hop: int = _HOP) -> np.ndarray:
    """(T, size), windowed; the rest that fills no frame, and the last one, are left out, as the programs do with
    which published values were made."""
    if len(waveform) < size + hop:
        return np.zeros((0, size))
    window = hann(size + 2)[1:-1]  # without its zeros
    return np.lib.stride_tricks.sliding_window_view(waveform, size)[::hop][:-1] * window


def _least(values: np.ndarray) -> float:
    return float(np.sort(values)[: max(1, round(_KEPT * len(values)))].mean())


def _likelihood_ratios(estimate: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Of each frame: how much more the estimate's predictor leaves of the target than the target's own does."""
    of_estimate, of_target = _autocorrelations(estimate), _autocorrelations(target)
    lags = np.abs(np.subtract.outer(np.arange(_ORDER + 1), np.arange(_ORDER + 1)))
    ratios = np.zeros(len(target))
    for index, (there, here) in enumerate(zip(of_estimate, of_target, strict=True)):
        matrix = here[lags]
        left, least = (x @ matrix @ x for x in (_predictor(there), _predictor(here)))
        ratios[index] = math.log(max(left, _TINY) / max(least, _TINY))
    return ratios


def _autocorrelations(frames: np.ndarray) -> np.ndarray:
    """(T, _ORDER + 1)."""
    found = np.fft.irfft(np.square(np.abs(np.fft.rfft(frames, 2 * _FRAME))))[:, : _ORDER + 1]
    found[:, 0] = found[:, 0] * (1 + 1e-9) + _TINY  # silence has a predictor too
    return found


def _predictor(correlations: np.ndarray) -> np.ndarray:
    """What takes the predictable part out of a frame: 1, and the negative weights of the past samples."""
    return np.concatenate(([1.0], -solve_toeplitz(correlations[:-1], correlations[1:])))


# Centres and widths of Klatt's critical bands in Hz, as in the appendix of Loizou, Speech Enhancement (2013).
_CENTRES = np.array(
    [50, 120, 190, 260, 330, 400, 470, 540, 617.372, 703.378, 798.717, 904.128, 1020.38, 1148.30, 1288.72]
    + [1442.54, 1610.70, 1794.16, 1993.93, 2211.08, 2446.71, 2701.97, 2978.04, 3276.17, 3597.63]
)
_WIDTHS = np.array(
    [70] * 7
    + [77.3724, 86.0056, 95.3398, 105.411, 116.256, 127.914, 140.423, 153.823, 168.154, 183.457, 199.776, 217.153]
    + [235.631, 255.255, 276.072, 298.126, 321.465, 346.136]
)
_GLOBAL, _LOCAL = 20.0, 1.0  # Klatt's constants of the weights, in dB
_FFT = 1024


def _spectral_slopes(estimate: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Of each frame: the squared difference of the slopes between neighbouring bands, weighted near peaks."""
    a, b = (_band_levels(frames) for frames in (estimate, target))
    slopes = [np.diff(levels, axis=1) for levels in (a, b)]
    weights = sum(_weights(levels, slope) for levels, slope in zip((a, b), slopes, strict=True)) / 2
    return (weights * np.square(slopes[0] - slopes[1])).sum(1) / weights.sum(1)


def _band_levels(frames: np.ndarray) -> np.ndarray:
    """(T, 25) in dB, through filters of Gaussian shape, at least -100 dB."""
    power = np.square(np.abs(np.fft.rfft(frames, _FFT)))[:, : _FFT // 2]
    bin_width = SAMPLE_RATE / _FFT
    centres, widths = np.floor(_CENTRES / bin_width)[:, None], (_WIDTHS / bin_width)[:, None]
    gains = np.exp(-11 * np.square((np.arange(_FFT // 2) - centres) / widths)) * (_WIDTHS.min() / _WIDTHS)[:, None]
    gains[gains < math.exp(-30 / (2 * 2.303))] = 0  # 30 dB below the peak
    return 10 * np.log10(np.maximum(power @ gains.T, _TINY))


def _weights(levels: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """(T, 24): less the farther a band lies below the highest, and below the peak that its slope leads to."""
    highest = levels.max(1, keepdims=True)
    below = levels[:, :-1]
    return _GLOBAL / (_GLOBAL + highest - below) * _LOCAL / (_LOCAL + _nearest_peaks(levels, slopes) - below)


def _nearest_peaks(levels: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """(T, 24): for every band but the last, the level to which its slope leads.

    Downwards that is the top of the hill; upwards, as in the programs with which all published values were made, the
    band below the top.
    """
    count = slopes.shape[1]
    upwards, downwards = np.empty_like(slopes), np.empty_like(slopes)
    for band in reversed(range(count)):
        ends = slopes[:, band + 1] <= 0 if band + 1 < count else True
        upwards[:, band] = np.where(ends, levels[:, band], upwards[:, min(band + 1, count - 1)])
    for band in range(count):
        ends = slopes[:, band - 1] > 0 if band else True
        downwards[:, band] = np.where(ends, levels[:, band], downwards[:, max(band - 1, 0)])
    return np.where(slopes > 0, upwards, downwards)
