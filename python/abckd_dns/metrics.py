"""How good enhanced speech is. Waveforms are (N,) at 16 kHz; a metric that is not defined for one is NaN."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pystoi
import torch
from torch import Tensor

from .stft import SAMPLE_RATE

try:
    import pesq
except ImportError:  # it exists as source only, so that installing it needs a C compiler
    pesq = None


def sisdr(estimate: Tensor, target: Tensor) -> float:
    """Scale-invariant signal-to-distortion ratio in dB."""
    estimate, target = estimate.double(), target.double()
    if not (estimate.any() and target.any()):
        return math.nan
    projection = (estimate @ target) / (target @ target) * target
    return (10 * torch.log10(projection.square().sum() / (estimate - projection).square().sum())).item()


def pesq_wideband(estimate: Tensor, target: Tensor) -> float:
    """Perceptual evaluation of speech quality (ITU-T P.862.2), 1.02 to 4.64."""
    if not (estimate.any() and target.any()):
        return math.nan
    try:
        return float(pesq.pesq(SAMPLE_RATE, target.numpy(), estimate.numpy(), "wb"))
    except (
        pesq.PesqError,
        ValueError,
        ZeroDivisionError,
    ):  # too short, or no utterance found in one of the two
        return math.nan


def stoi(estimate: Tensor, target: Tensor) -> float:
    """Short-time objective intelligibility, up to 1."""
    if not (estimate.any() and target.any()):
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # how pystoi says that there is too little speech
        try:
            return float(pystoi.stoi(target.numpy(), estimate.numpy(), SAMPLE_RATE))
        except (RuntimeWarning, ValueError):
            return math.nan


METRICS = {"SI-SDR (dB)": sisdr, "PESQ-WB": pesq_wideband, "STOI": stoi}
if pesq is None:
    del METRICS["PESQ-WB"]


def mean_and_margin(values: list[float], seed: int = 0) -> tuple[float, float]:
    """Mean of the defined values and half the width of its 95 % bootstrap interval."""
    defined = np.array([value for value in values if math.isfinite(value)])
    if not len(defined):
        return math.nan, math.nan
    samples = np.random.default_rng(seed).choice(defined, (2000, len(defined))).mean(axis=1)
    low, high = np.percentile(samples, (2.5, 97.5))
    return float(defined.mean()), float(high - low) / 2
