"""A streaming model in int8: weights and activations of its convolutions and matrix products, by onnxruntime's own
static quantiser.

Static: the range of every activation is found beforehand, on recordings. The products that are the Fourier transform,
and what is between them and the compression of the spectrum, stay in float32: their dynamic range is that of sound.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..constants import SAMPLE_RATE
from ..data.audio import read_segment
from ..data.pairs import Pair, find_pairs
from ..errors import InputError
from ..evaluation.metrics import METRICS
from ..files import write_atomically
from ..markdown import table
from ..network.export import onnx_step
from ..network.stft import BINS, HOP
from ..network.streaming import Step, enhance_by_steps

_QUANTISED = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_CALIBRATING, _SCORED = 16, 16  # recordings
_LONGEST = 10 * SAMPLE_RATE
_EVERY = 4  # steps, of which one calibrates: neighbours are alike


def export_int8(model: Path, folder: Path, sides: tuple[str, str] | None) -> Path:
    """MODEL.int8.onnx beside `model`, calibrated on some pairs of a folder and measured on others, before and after.

    Raises InputError.
    """
    pairs = find_pairs(folder, "--int8", sides)
    calibrating, scored = pairs[:_CALIBRATING], pairs[_CALIBRATING : _CALIBRATING + _SCORED]
    if not scored:
        print(f"note: --int8 {folder} has {len(pairs)} pairs; the scores are of those that calibrate")
        scored = calibrating
    output = model.with_name(f"{model.stem}.int8.onnx")
    write_atomically(output, lambda unfinished: _quantise(model, calibrating, unfinished))
    print(f"written: {output} ({output.stat().st_size / 2**20:.1f} MiB)")
    columns = ("model", "SI-SDR (dB)", "PESQ-WB", "MiB")
    rows = [[path.name, *_scores(path, scored), f"{path.stat().st_size / 2**20:.2f}"] for path in (model, output)]
    print(f"scores of {len(scored)} recordings of {folder}, up to {_LONGEST // SAMPLE_RATE} s each:")
    print(table(columns, rows))
    return output


def _quantise(model: Path, pairs: list[Pair], output: Path) -> None:
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder, "prepared.onnx")
        quantization.shape_inference.quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(output),
            _Calibration(model, pairs),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(_QUANTISED),
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            activation_type=quantization.QuantType.QUInt8,
            nodes_to_exclude=_left_in_float(prepared),
        )


def _left_in_float(model: Path) -> list[str]:
    """The products with the matrices of the Fourier transform, which are the only ones of their sizes; and transposed
    convolutions in groups, whose scales per channel onnxruntime's quantiser miscounts."""
    import onnx

    graph = onnx.load(str(model)).graph
    shapes = {constant.name: tuple(constant.dims) for constant in graph.initializer}
    sizes = {(2 * HOP, 2 * BINS), (2 * BINS, 2 * HOP)}
    found = [node for node in graph.node if any(shapes.get(name) in sizes for name in node.input)]
    transposed = [node for node in graph.node if node.op_type == "ConvTranspose"]
    found += [node for node in transposed if any(x.name == "group" and x.i > 1 for x in node.attribute)]
    return [node.name for node in found]


class _Calibration:
    """The inputs of a model's steps on recordings, as onnxruntime's quantiser asks for them."""

    def __init__(self, model: Path, pairs: list[Pair]) -> None:
        self._inputs = _inputs(model, pairs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._inputs, None)

    def set_range(self, start_index: int, end_index: int) -> None:  # of a calibration in parts, which this is not
        raise NotImplementedError


def _inputs(model: Path, pairs: list[Pair]) -> Iterator[dict[str, np.ndarray]]:
    step, initial = onnx_step(model)
    for pair in pairs:
        state = initial
        for index, samples in enumerate(read_segment(pair.noisy, _LONGEST, 0.0)[None].split(HOP, dim=-1)):
            if samples.shape[-1] < HOP:
                break
            if index % _EVERY == 0:
                yield {"samples": samples.numpy(), **{f"state.{name}": x.numpy() for name, x in state.items()}}
            _, state = step(samples, state)


def _scores(model: Path, pairs: list[Pair]) -> list[str]:
    step, state = onnx_step(model)
    names = [name for name in ("si-sdr", "pesq") if not METRICS[name].missing_packages()]
    found = {name: [_score(name, step, state, pair) for pair in pairs] for name in names}
    return [f"{np.nanmean(found[name]):.3f}" if name in found else "-" for name in ("si-sdr", "pesq")]


def _score(name: str, step: Step, state: dict[str, Tensor], pair: Pair) -> float:
    noisy, clean = (read_segment(path, _LONGEST, 0.0) for path in (pair.noisy, pair.clean))
    if len(noisy) != len(clean):
        raise InputError(f"--int8: {pair.noisy} and {pair.clean} are of unequal length")
    with torch.inference_mode():
        enhanced = enhance_by_steps(step, state, noisy[None])[0].clone()
    return next(iter(METRICS[name](enhanced, clean).values()))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's remarks on how to prepare a model, which is done."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
