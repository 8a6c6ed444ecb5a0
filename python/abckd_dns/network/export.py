"""The step of a `StreamingDenoiser` as an ONNX model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from ..constants import SAMPLE_RATE
from ..errors import InputError
from ..files import make_parent, write_atomically
from ..options import ExportOptions
from .load import described, load_network
from .stft import HOP
from .streaming import DELAY, LATENCY, State, Step, StreamingDenoiser, enhance_by_steps, streaming

_IR_VERSION = 10
"""Of the file: what onnxruntime 1.18 reads, and every later one."""

TOLERANCE = 1e-5
"""What a sample may differ between onnxruntime and torch; full scale is 1."""


def check_installed(options: ExportOptions) -> None:
    """Raise InputError where a package is missing, or the output is no model."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise InputError(f"export needs {', '.join(missing)}: pip install 'abckd-kernels[export]'")
    if options.output.suffix != ".onnx":
        raise InputError(f"--output: expected a file *.onnx, got {options.output}")


def export_onnx(options: ExportOptions) -> None:
    """The model, if onnxruntime computes the same with it as torch. Raises InputError."""
    denoiser = streaming(load_network(options.checkpoint, "--checkpoint"), "--checkpoint")

    def write(unfinished: Path) -> None:
        write_onnx(denoiser, unfinished, options.opset)
        difference = _difference(denoiser, unfinished)
        if not difference <= TOLERANCE:
            raise InputError(
                f"{options.checkpoint}: onnxruntime and torch differ by {difference:.1e}, more than {TOLERANCE:.0e}; "
                "nothing was written"
            )
        print(f"onnxruntime and torch differ by at most {difference:.1e} (allowed: {TOLERANCE:.0e})")

    make_parent(options.output)
    write_atomically(options.output, write)
    print(f"written: {options.output} ({options.output.stat().st_size / 2**20:.1f} MiB)")


def write_onnx(denoiser: StreamingDenoiser, path: Path, opset: int = 18) -> None:
    """Inputs samples (batch, HOP) and state.NAME, outputs enhanced (batch, HOP) and next.NAME.

    Raises InputError if torch cannot write this version of the operators.
    """
    state = denoiser.initial_state(batch=2)  # an axis of size 1 would be taken for a constant
    batch = {0: torch.export.Dim("batch")}
    with _quiet():
        program = torch.onnx.export(
            _StepModule(denoiser),
            kwargs={"samples": torch.zeros(2, HOP), "state": state},
            input_names=["samples", *(f"state.{name}" for name in state)],
            output_names=["enhanced", *(f"next.{name}" for name in state)],
            dynamic_shapes={"samples": batch, "state": dict.fromkeys(state, batch)},
            dynamo=True,
            opset_version=opset,
            verbose=False,
        )
    found = program.model.opset_imports[""]
    if found != opset:
        raise InputError(f"--opset {opset}: this network can be written in opset {found}, not in {opset}")
    program.model.ir_version = _IR_VERSION
    samples = {"sample_rate": SAMPLE_RATE, "hop": HOP, "delay": DELAY, "latency": LATENCY}
    program.model.metadata_props.update({name: str(value) for name, value in samples.items()})
    program.model.metadata_props.update(described(denoiser.denoiser))
    program.save(path, external_data=False)


def onnx_step(path: Path) -> tuple[Step, State]:
    """The step of an exported model, run by onnxruntime with one thread, and the initial state of one sound."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    shapes = {given.name: given.shape for given in session.get_inputs()}
    state = {
        name.removeprefix("state."): torch.zeros(1, *shape[1:])
        for name, shape in shapes.items()
        if name.startswith("state.")
    }

    def step(samples: Tensor, state: State) -> tuple[Tensor, State]:
        given = {"samples": samples.numpy(), **{f"state.{name}": values.numpy() for name, values in state.items()}}
        enhanced, *following = map(torch.from_numpy, session.run(None, given))
        return enhanced, dict(zip(state, following, strict=True))

    return step, state


class _StepModule(nn.Module):
    """What is exported is the forward of a module."""

    def __init__(self, denoiser: StreamingDenoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, samples: Tensor, state: State) -> tuple[Tensor, State]:
        return self.denoiser.step(samples, state)


@torch.inference_mode()
def _difference(denoiser: StreamingDenoiser, path: Path) -> float:
    """Between the model and torch, over two seconds of noise."""
    generator = torch.Generator().manual_seed(0)
    noisy = 0.1 * torch.randn(1, 2 * SAMPLE_RATE, generator=generator)
    return (enhance_by_steps(*onnx_step(path), noisy) - denoiser(noisy)).abs().max().item()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter has to say of itself and of packages that it does not need."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
