"""How good enhanced speech is. Waveforms are (N,) at 16 kHz; a metric that is not defined for one is NaN."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..constants import SAMPLE_RATE
from ..errors import InputError
from ..sisdr import sisdr
from .composite import composite, log_spectral_distance, segmental_snr
from .pesq_process import PesqProcess


class Undefined(Exception):
    """A metric has no value for a recording; the text says why."""


def si_sdr(estimate: Tensor, target: Tensor) -> float:
    """Scale-invariant signal-to-distortion ratio in dB."""
    _check_sound(estimate, target)
    if len(target) <= _LONGEST:
        return sisdr(estimate.double(), target.double()).item()
    # The same in blocks: in float64 an hour would take gigabytes.
    pairs = list(zip(estimate.split(_LONGEST), target.split(_LONGEST), strict=True))
    energy = sum(b.double().square().sum().item() for _, b in pairs)
    scale = sum((a.double() @ b.double()).item() for a, b in pairs) / energy
    unwanted = sum((a.double() - scale * b.double()).square().sum().item() for a, b in pairs)
    wanted = scale**2 * energy
    return 10 * math.log10(wanted / unwanted) if wanted and unwanted else math.copysign(math.inf, wanted - unwanted)


def pesq_wideband(estimate: Tensor, target: Tensor) -> float:
    """Perceptual evaluation of speech quality (ITU-T P.862.2), 1.02 to 4.64."""
    _check_sound(estimate, target)
    value, why = _pesq_once(_Pair(estimate, target))
    if why:
        raise Undefined(why)
    return value


class _Pair:
    """Two waveforms, equal to themselves alone: what was computed of them can be kept."""

    def __init__(self, estimate: Tensor, target: Tensor) -> None:
        self.estimate, self.target = estimate, target

    def __hash__(self) -> int:
        return hash((id(self.estimate), id(self.target)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Pair) and self.estimate is other.estimate and self.target is other.target


@functools.lru_cache(maxsize=1)  # the composite measures need it too; the key keeps the waveforms alive
def _pesq_once(pair: _Pair) -> tuple[float, str]:
    return _pesq_process()(pair.estimate.float().numpy(), pair.target.float().numpy())


@functools.cache
def _pesq_process() -> PesqProcess:
    return PesqProcess()


def stoi(estimate: Tensor, target: Tensor, extended: bool = False) -> float:
    """Short-time objective intelligibility, up to 1; `extended` is ESTOI."""
    import pystoi

    _check_sound(estimate, target)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # how pystoi says that there is too little speech
        try:
            return float(pystoi.stoi(target.numpy(), estimate.numpy(), SAMPLE_RATE, extended))
        except (RuntimeWarning, ValueError) as error:
            raise Undefined("STOI: too little speech") from error


def composite_measures(estimate: Tensor, target: Tensor) -> tuple[float, float, float]:
    """CSIG, CBAK and COVL, 1 to 5."""
    return composite(*_as_double(estimate, target), pesq_wideband(estimate, target))


def segsnr(estimate: Tensor, target: Tensor) -> float:
    """Segmental SNR in dB, -10 to 35."""
    _check_sound(estimate, target)
    return segmental_snr(*_as_double(estimate, target))


def lsd(estimate: Tensor, target: Tensor) -> float:
    """Log-spectral distance in dB, from 0."""
    _check_sound(estimate, target)
    return log_spectral_distance(*_as_double(estimate, target))


def _as_double(*waveforms: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(waveform.double().numpy() for waveform in waveforms)


def _check_sound(estimate: Tensor, target: Tensor) -> None:
    if not (estimate.any() and target.any()):
        raise Undefined("one of the two is silent")


_LONGEST = 60 * SAMPLE_RATE
"""Longer recordings are measured piece by piece: PESQ is meant for less (ITU-T P.862.3) and crashes on more, and
memory grows with the length."""
_PIECE = 30 * SAMPLE_RATE


def by_pieces(function: Callable[..., float | tuple[float, ...]], estimate: Tensor, target: Tensor) -> Any:
    """`function` of both, or, of what is longer than a minute, its mean over pieces of at most half a minute, each
    counted by its length; they end where the target is quietest. Pieces without a value are left out.
    """
    if len(target) <= _LONGEST:
        return function(estimate, target)
    values, lengths, why = [], [], ""
    for piece in split_at_silence(target, _PIECE):
        try:
            values.append(function(estimate[piece].clone(), target[piece].clone()))
            lengths.append(piece.stop - piece.start)
        except Undefined as error:
            why = str(error)
    if not values:
        raise Undefined(why)
    mean = np.average(np.array(values, dtype=float), axis=0, weights=lengths)
    return tuple(map(float, mean)) if mean.ndim else float(mean)


def split_at_silence(waveform: Tensor, longest: int) -> list[slice]:
    """The whole of (N,), in order, in slices of at most `longest` samples, cut in the quietest fifth of a second of
    the second half of each."""
    step = SAMPLE_RATE // 50
    slices, start = [], 0
    while len(waveform) - start > longest:
        low, high = start + longest // 2, start + longest
        power = waveform[low:high].double().square()
        frames = power[: len(power) // step * step].view(-1, step).sum(1)
        around = torch.nn.functional.avg_pool1d(frames[None], 10, stride=1)[0]
        end = low + (int(around.argmin()) + 5) * step
        slices.append(slice(start, end))
        start = end
    slices.append(slice(start, len(waveform)))
    if len(slices) > 1 and slices[-1].stop - slices[-1].start < SAMPLE_RATE:  # too little for any metric
        *slices, before, last = slices
        slices.append(slice(before.start, last.stop))
    return slices


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
    by_default: bool = True
    """Whether it is measured unless --metrics says what is."""
    in_pieces: bool = True
    """Whether a long recording is measured in pieces, as the metric is itself a mean over time."""

    def missing_packages(self) -> list[str]:
        return [name for name in self.packages if find_spec(name) is None]

    def measure(self, estimate: Tensor, target: Tensor | None) -> tuple[dict[str, float], str]:
        """Its values by column, and "", or NaN and why."""
        try:
            if not estimate.isfinite().all():
                raise Undefined("the estimate has values that are not finite numbers")
            pieces = self.in_pieces and target is not None
            values = by_pieces(self.function, estimate, target) if pieces else self.function(estimate, target)
        except Undefined as error:
            return dict.fromkeys(self.columns, math.nan), str(error)
        return dict(zip(self.columns, values if isinstance(values, tuple) else (values,), strict=True)), ""

    def __call__(self, estimate: Tensor, target: Tensor | None) -> dict[str, float]:
        return self.measure(estimate, target)[0]


METRICS = {
    "si-sdr": Metric(("SI-SDR (dB)",), si_sdr, in_pieces=False),
    # It exists as source only, so that installing it needs a C compiler.
    "pesq": Metric(("PESQ-WB",), pesq_wideband, ("pesq",)),
    "stoi": Metric(("STOI",), stoi),
    "estoi": Metric(("ESTOI",), functools.partial(stoi, extended=True)),
    "composite": Metric(("CSIG", "CBAK", "COVL"), composite_measures, ("pesq",), by_default=False),
    "segsnr": Metric(("SegSNR (dB)",), segsnr, by_default=False),
    "lsd": Metric(("LSD (dB)",), lsd, by_default=False),
    "dnsmos": Metric(
        tuple(f"DNSMOS {part}" for part in ("SIG", "BAK", "OVRL", "P808")),
        dnsmos,
        ("speechmos", "librosa", "requests", "onnxruntime"),  # the last three speechmos imports without saying so
        needs_clean=False,
        in_pieces=False,
    ),
}


def choose_metrics(wanted: tuple[str, ...], has_clean: bool) -> tuple[list[str], list[str]]:
    """The metrics that are wanted or by default possible, and remarks on what is left out. Raises InputError."""
    chosen, remarks = [], []
    for name in dict.fromkeys(wanted) or _default_metrics(has_clean):
        missing = METRICS[name].missing_packages()
        if METRICS[name].needs_clean and not has_clean:
            raise InputError(f"--metrics {name} needs clean speech; with --noisy only dnsmos can be computed")
        if not missing:
            chosen.append(name)
        elif wanted or not has_clean:
            raise InputError(
                f"{name} cannot be computed: {', '.join(missing)} not installed (pip install {' '.join(missing)})"
            )
        else:
            remarks.append(f"{name} is left out: {', '.join(missing)} is not installed.")
    return chosen, remarks


def _default_metrics(has_clean: bool) -> list[str]:
    return [name for name, metric in METRICS.items() if metric.needs_clean == has_clean and metric.by_default]
