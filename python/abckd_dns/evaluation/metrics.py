"""How good enhanced speech is. Waveforms are (N,) at 16 kHz; a metric that is not defined for one is NaN."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..constants import SAMPLE_RATE
from ..errors import InputError
from ..sisdr import sisdr


def si_sdr(estimate: Tensor, target: Tensor) -> float:
    """Scale-invariant signal-to-distortion ratio in dB."""
    if not (estimate.any() and target.any()):
        return math.nan
    return sisdr(estimate.double(), target.double()).item()


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
    import pystoi

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
    "si-sdr": Metric(("SI-SDR (dB)",), si_sdr),
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


def choose_metrics(wanted: tuple[str, ...], has_clean: bool) -> tuple[list[str], list[str]]:
    """The metrics that are wanted or by default possible, and remarks on what is left out. Raises InputError."""
    chosen, remarks = [], []
    for name in dict.fromkeys(wanted) or [name for name, metric in METRICS.items() if metric.needs_clean == has_clean]:
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
