"""Networks of others as teachers: public denoisers, and ONNX models, as modules that only run forward.

Features come out of `layers`, a dictionary of modules that pass them through, so that a `Distiller` finds them by
name as those of any network, layers.NAME. Their frames and bands are the teacher's own; losses on pooled maps (abc, at,
afd) compare what lies at the same time and frequency, whatever the grids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..constants import SAMPLE_RATE
from ..errors import InputError
from ..network.names import RIVALS
from .sessions import quiet_options

Features = dict[str, np.ndarray]
"""By layer (C, T, F)."""


class ForeignTeacher(nn.Module):
    """Noisy waveforms (B, N) at 16 kHz to enhanced waveforms (B, N), on the CPU, one by one, without gradients."""

    def __init__(
        self, run: Callable[[np.ndarray], tuple[np.ndarray, Features]], layers: Sequence[str], identity: bytes
    ) -> None:
        """run: of a waveform (N,), the enhanced one and the features of `layers`. identity: of no other teacher."""
        super().__init__()
        self._run = run
        self.layers = nn.ModuleDict({name: nn.Identity() for name in layers})
        digest = np.frombuffer(hashlib.sha256(identity).digest(), np.uint8).copy()
        self.register_buffer("identity", torch.from_numpy(digest))

    @property
    def distillation_layers(self) -> tuple[str, ...]:
        return tuple(f"layers.{name}" for name in self.layers)

    @torch.no_grad()
    def forward(self, noisy: Tensor) -> Tensor:
        found = [self._run(waveform) for waveform in noisy.detach().float().cpu().numpy()]
        for name, layer in self.layers.items():
            layer(torch.from_numpy(np.stack([features[name] for _, features in found])).float().to(noisy.device))
        return torch.from_numpy(np.stack([enhanced for enhanced, _ in found])).to(noisy.device, noisy.dtype)


def load_teacher(name: str, layers: str | None) -> ForeignTeacher:
    """dfn3, gtcrn, dtln or nsnet2, or an ONNX model; `layers` are those whose features are wanted, layers.a,layers.b.

    An ONNX model maps its one input of sound (1, N), (N,) or (1, 1, N) at 16 kHz to its first output, of the same
    shape; layers are names of values in it of shape (1, C, T, F), or (1, C, T), which is taken as of one band. Raises
    InputError.
    """
    wanted = [layer.strip().removeprefix("layers.") for layer in (layers or "").split(",") if layer.strip()]
    return _rival(name, wanted) if name in RIVALS else _onnx(Path(name), wanted)


def _rival(name: str, wanted: list[str]) -> ForeignTeacher:
    if name != "dfn3":
        from .denoisers import RIVALS as DENOISERS

        if wanted:
            raise InputError(f"--teacher-layers: of {name} only its output can be learned, not {', '.join(wanted)}")
        denoise = DENOISERS[name].make()
        return ForeignTeacher(lambda noisy: (denoise(noisy), {}), (), name.encode())
    from .deepfilter import DECODER_LAYERS, ENCODER_LAYERS, DeepFilter

    known = (*ENCODER_LAYERS, *DECODER_LAYERS)
    for layer in wanted:
        if layer not in known:
            raise InputError(f"--teacher-layers: dfn3 has no layer {layer}; its layers: {', '.join(known)}")
    chosen = tuple(wanted) or known
    network = DeepFilter(chosen)

    def run(noisy: np.ndarray) -> tuple[np.ndarray, Features]:
        enhanced = network(noisy)
        return enhanced.waveform, enhanced.features

    return ForeignTeacher(run, chosen, b"dfn3")


def _onnx(path: Path, wanted: list[str]) -> ForeignTeacher:
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise InputError(f"--teacher {path}: {error}; pip install 'abckd-kernels[export]'") from error
    try:
        content = path.read_bytes()
        model = onnx.load_from_string(content)
        there = {output for node in model.graph.node for output in node.output}
        for layer in wanted:
            if layer not in there:
                some = ", ".join(sorted(there)[:5])
                raise InputError(f"--teacher-layers: {path} has no value {layer}; it has {some}, ...")
        outputs = [output.name for output in model.graph.output]
        inner = [layer for layer in wanted if layer not in outputs]
        model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(layer) for layer in inner)
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), quiet_options(), providers=["CPUExecutionProvider"]
        )
    except InputError:
        raise
    except Exception as error:  # of protobuf, onnx or onnxruntime, which have no common one
        raise InputError(f"--teacher {path}: it is no ONNX model that onnxruntime runs: {error}") from error
    given = session.get_inputs()
    if len(given) != 1:
        raise InputError(
            f"--teacher {path}: expected a model of one input, a waveform, got {', '.join(x.name for x in given)}; a "
            "model that works frame by frame must be wrapped by package.module:factory"
        )
    rank = len(given[0].shape)
    if not 1 <= rank <= 3:
        raise InputError(f"--teacher {path}: expected an input (1, N), (N,) or (1, 1, N), got {given[0].shape}")

    def run(noisy: np.ndarray) -> tuple[np.ndarray, Features]:
        shape = (1,) * (rank - 1) + noisy.shape
        try:
            enhanced, *features = session.run([outputs[0], *wanted], {given[0].name: noisy.reshape(shape)})
        except Exception as error:  # whatever onnxruntime raises
            raise InputError(f"--teacher {path}: it failed on a waveform {shape}: {error}") from error
        if enhanced.size != noisy.size:
            raise InputError(
                f"--teacher {path}: expected a waveform of {noisy.size} samples, got {tuple(enhanced.shape)}"
            )
        found = {}
        for layer, feature in zip(wanted, features, strict=True):
            if feature.ndim not in (3, 4) or feature.shape[0] != 1:
                raise InputError(
                    f"--teacher-layers: {layer} of {path} is {tuple(feature.shape)}, expected (1, C, T) or (1, C, T, F)"
                )
            found[layer] = feature[0] if feature.ndim == 4 else feature[0, ..., None]
        return enhanced.reshape(-1).astype(np.float32), found

    run(np.zeros(SAMPLE_RATE, np.float32))  # whatever is wrong is said at once
    return ForeignTeacher(run, [_module_name(layer) for layer in wanted], content)


def _module_name(layer: str) -> str:
    if "." in layer:
        raise InputError(f"--teacher-layers: {layer}: a name with dots names no module; rename the value in the model")
    return layer
