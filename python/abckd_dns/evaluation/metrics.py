"""How good enhanced speech is. Waveforms are (N,) at 16 kHz; a metric that is not defined for one is NaN."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pystoi
import torch
from torch import Tensor

from ..network.stft import SAMPLE_RATE


def sisdr(estimate: Tensor, target: Tensor) -> float:
    """Scale-invariant signal-to-distortion ratio in dB."""
    estimate, target = estimate.double(), target.double()
    if not (estimate.any() and target.any()):
        return math.nan
    projection = (estimate @ target) / (target @ target) * target
    return (10 * torch.log10(projection.square().sum() / (estimate - projection).square().sum())).item()


def pesq_wideband(estimate: Tensor, target: Tensor) -> float:
    """Perceptual evaluation of speech quality (ITU-T P.862.2), 1.02 to 4.64."""
    import pesq

    if not (estimate.any() and target.any()):
        return math.nan
    try:
        return float(pesq.pesq(SAMPLE_RATE, target.numpy(), estimate.numpy(), "wb"))
    except (pesq.PesqError, ValueError, ZeroDivisionError):  # too short, or no utterance found in one of the two
        return math.nan


def stoi(estimate: Tensor, target: Tensor, extended: bool = False) -> float:
    """Short-time objective intelligibility, up to 1; `extended` is ESTOI."""
    if not (estimate.any() and target.any()):
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # how pystoi says that there is too little speech
        try:
            return float(pystoi.stoi(target.numpy(), estimate.numpy(), SAMPLE_RATE, extended))
        except (RuntimeWarning, ValueError):
            return math.nan


def dnsmos(estimate: Tensor, target: Tensor | None = None) -> tuple[float, float, float, float]:
    """What listeners would say of speech, background and the whole (ITU-T P.835) and of the whole (P.808), 1 to 5,
    as DNSMOS predicts it without a target."""
    values = _dnsmos_model()(estimate.clamp(-1, 1).numpy(), SAMPLE_RATE, False)
    return tuple(float(values[name]) for name in ("sig_mos", "bak_mos", "ovrl_mos", "p808_mos"))


@functools.cache
def _dnsmos_model() -> Callable:
    import onnxruntime
    import speechmos.dnsmos

    folder = Path(speechmos.dnsmos.__file__).parent / "dnsmos_models"
    paths = [str(folder / name) for name in ("sig_bak_ovr.onnx", "model_v8.onnx")]
    model = speechmos.dnsmos.DNSMOS(*paths)
    # Its own sessions take every core; here there is a process per core.
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model.onnx_sess, model.p808_onnx_sess = (onnxruntime.InferenceSession(path, options) for path in paths)
    return model


class Metric(NamedTuple):
    """A function of an estimate and its target, and what it gives."""

    columns: tuple[str, ...]
    """Names of its values."""
    function: Callable[[Tensor, Tensor], float | tuple[float, ...]]
    packages: tuple[str, ...] = ()
    """What it imports and an installation may lack."""
    needs_clean: bool = True

    def missing_packages(self) -> list[str]:
        return [name for name in self.packages if find_spec(name) is None]

    def __call__(self, estimate: Tensor, target: Tensor | None) -> dict[str, float]:
        if not estimate.isfinite().all():
            return dict.fromkeys(self.columns, math.nan)
        values = self.function(estimate, target)
        return dict(zip(self.columns, values if isinstance(values, tuple) else (values,), strict=True))


METRICS = {
    "si-sdr": Metric(("SI-SDR (dB)",), sisdr),
    # It exists as source only, so that installing it needs a C compiler.
    "pesq": Metric(("PESQ-WB",), pesq_wideband, ("pesq",)),
    "stoi": Metric(("STOI",), stoi),
    "estoi": Metric(("ESTOI",), functools.partial(stoi, extended=True)),
    "dnsmos": Metric(
        tuple(f"DNSMOS {part}" for part in ("SIG", "BAK", "OVRL", "P808")),
        dnsmos,
        ("speechmos", "librosa", "requests", "onnxruntime"),  # the last three speechmos imports without saying so
        needs_clean=False,
    ),
}


class Interval(NamedTuple):
    """A mean with its 95 % bootstrap interval, and how many values went into it."""

    mean: float
    low: float
    high: float
    defined: int
    undefined: int

    @property
    def margin(self) -> float:
        """Half the width."""
        return (self.high - self.low) / 2


def mean_interval(values: list[float], resamples: int = 2000, seed: int = 0) -> Interval:
    """Of the finite values, with `resamples` (hundreds) draws. One value has no interval, and none has no mean: NaN."""
    defined = np.array([value for value in values if math.isfinite(value)])
    count = len(defined)
    rng = np.random.default_rng(seed)
    means = [math.nan]
    if count > 1:  # a hundred at a time: fast, and of a large test set all would not fit into memory
        drawn = (rng.integers(count, size=(100, count)) for _ in range(resamples // 100))
        means = np.concatenate([defined[indices].mean(axis=1) for indices in drawn])
    low, high = np.percentile(means, (2.5, 97.5))
    mean = float(defined.mean()) if count else math.nan
    return Interval(mean, float(low), float(high), count, len(values) - count)


def paired_difference(values: list[float], baseline: list[float]) -> Interval:
    """Of value minus baseline, example by example: far more certain than the difference of two means."""
    return mean_interval([value - base for value, base in zip(values, baseline, strict=True)])
