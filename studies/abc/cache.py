"""What a teacher says of every training mixture, computed once: no student's step runs a teacher.

A cache is a folder of arrays with one row per mixture, for S samples and T = 1 + S // 256 frames of the student:

output.npy     int16 (count, S)     the teacher's waveform
maps.npy       float16 (count, T, sum F_j)         mean over channels of x^2, layer by layer
features.npy   float16 (count, T, 16 sum G_j)      the layer's 16 principal channels, G_j <= 33 bands
basis.npz      those channels: (16, C_j) by layer, from the first mixtures, uncentred
manifest.json  layers, F_j, G_j, the share of a layer's energy that its 16 channels keep

Time and frequency are the student's: DeepFilterNet3's frames, 10 ms apart, are interpolated at the student's, 16 ms
apart, and its ERB bands on linear axes up to 8 kHz. So segments are cut from a cache as from waveforms, and a frame or
band of a teacher lies where that of the student does. A utterance is given to the teacher as a whole: its states have
settled for most of it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from .package import HOP, SAMPLE_RATE, InputError, deepfilter, load_network, wheels, write_json

CHANNELS = 16  # kept of a layer
_BANDS = 33  # kept of a layer at most
_FULL_SCALE = 2**15 - 1
_FOR_BASIS = 48  # mixtures that the principal channels are found on

Features = dict[str, Tensor]
Teach = Callable[[np.ndarray], tuple[np.ndarray, Features]]


@dataclass(frozen=True)
class Layer:
    """Of a teacher: what is kept of it."""

    name: str
    bands: int
    """F of its map."""
    feature_bands: int
    """F of its principal channels."""


def own_teacher(checkpoint: Path) -> tuple[Teach, tuple[Layer, ...]]:
    """A network of this project, whose frames and bands are those of the student already."""
    network = load_network(str(checkpoint), "--teacher").eval()
    names = network.distillation_layers
    sizes = [features.shape[-1] for features in _own_features(network, np.zeros(SAMPLE_RATE, np.float32))[1].values()]
    layers = tuple(Layer(name, size, min(size, _BANDS)) for name, size in zip(names, sizes, strict=True))
    return partial(_own_features, network), layers


@torch.inference_mode()
def _own_features(network: nn.Module, noisy: np.ndarray) -> tuple[np.ndarray, Features]:
    output, features = with_features(network, torch.from_numpy(noisy)[None])
    return output[0].numpy(), {name: x[0] for name, x in features.items()}


def with_features(network: nn.Module, noisy: Tensor) -> tuple[Tensor, Features]:
    """Output and features (B, C, T, F) of a network of this project, by the names of its distillation layers."""
    stages = {id(stage): name for name, stage in network.stages.items()}
    features: Features = {}

    def run(stage: nn.Module, x: Tensor) -> Tensor:
        features[stages[id(stage)]] = x = stage(x)
        return x

    from .package import compress

    spectrum = network.stft(noisy)
    mask = network.estimate_mask(torch.stack(compress(spectrum), dim=1), run)
    output = network.stft.inverse(spectrum * torch.complex(mask[:, 0], mask[:, 1]), noisy.shape[-1])
    del features["mask"]
    return output, features


# Names by stage, as those of the networks of this project, so that `mask=stage` works. c0 ends at 4.8 kHz: bins of
# 50 Hz, of which 39 bands of 125 Hz are made.
_DEEPFILTER_NAMES = {
    "encoder.0": ("e0", 65),
    "encoder.1": ("e1", 33),
    "encoder.2": ("e2", 17),
    "encoder.3": ("e3", 17),
    "decoder.0": ("d3", 17),
    "decoder.1": ("d2", 33),
    "decoder.2": ("d1", 65),
    "complex.0": ("c0", 39),
}


def deepfilter_teacher() -> tuple[Teach, tuple[Layer, ...]]:
    wheels.fetch(wheels.DEEPFILTER)
    network = deepfilter.DeepFilter(tuple(name for name, _ in _DEEPFILTER_NAMES.values()))
    layers = tuple(Layer(name, bands, min(bands, _BANDS)) for name, (_, bands) in _DEEPFILTER_NAMES.items())
    axes = {name: _axis(own, bands) for name, (own, bands) in _DEEPFILTER_NAMES.items()}

    def teach(noisy: np.ndarray) -> tuple[np.ndarray, Features]:
        enhanced = network(noisy)
        frames = 1 + len(noisy) // HOP
        features = {}
        for name, (own, _) in _DEEPFILTER_NAMES.items():
            x = torch.from_numpy(np.ascontiguousarray(enhanced.features[own]))
            features[name] = _at_student_frames(x, frames) @ axes[name]
        return enhanced.waveform, features

    return teach, layers


def _axis(layer: str, bands: int) -> Tensor:
    """(F, bands): linear interpolation from the layer's bands onto equal ones."""
    if layer == "c0":
        centres, wanted = np.arange(96) * 50.0, np.arange(bands) * 125.0
    else:
        width = {"e0": 1, "e1": 2, "e2": 4, "e3": 4, "d3": 4, "d2": 2, "d1": 1}[layer]
        centres = deepfilter.band_centres().reshape(-1, width).mean(1)
        wanted = np.linspace(0, SAMPLE_RATE / 2, bands)
    columns = [np.interp(wanted, centres, unit) for unit in np.eye(len(centres))]
    return torch.from_numpy(np.stack(columns)).float()


def _at_student_frames(x: Tensor, frames: int) -> Tensor:
    """(C, T', F) with frames at 10 ms t to (C, frames, F) with frames at 16 ms t."""
    places = torch.arange(frames) * (HOP / (SAMPLE_RATE / 100))
    before = places.floor().long().clamp(max=x.shape[1] - 1)
    after = (before + 1).clamp(max=x.shape[1] - 1)
    return torch.lerp(x[:, before], x[:, after], (places - before)[:, None].float())


def make(teach: Teach, layers: tuple[Layer, ...], mixtures: Path, out: Path, count: int) -> None:
    """Fill `out` for the first `count` mixtures of a prepared folder; an interrupted one goes on where it stopped."""
    noisy = np.load(mixtures / "noisy.npy", mmap_mode="r")
    if (out / "manifest.json").exists():
        return
    unfinished = out.with_name(out.name + ".unfinished")
    unfinished.mkdir(parents=True, exist_ok=True)
    done_file = unfinished / "done.txt"
    basis = _basis(teach, layers, noisy, unfinished / "basis.npz")
    frames = 1 + noisy.shape[1] // HOP
    shapes = {
        "output": (np.int16, (count, noisy.shape[1])),
        "maps": (np.float16, (count, frames, sum(layer.bands for layer in layers))),
        "features": (np.float16, (count, frames, CHANNELS * sum(layer.feature_bands for layer in layers))),
    }
    arrays = {name: _open(unfinished / f"{name}.npy", *shape) for name, shape in shapes.items()}
    done = int(done_file.read_text()) if done_file.exists() else 0
    for index in tqdm(range(done, count), initial=done, total=count, desc=out.name, unit="mixture", mininterval=5):
        output, features = teach(noisy[index].astype(np.float32) / _FULL_SCALE)
        arrays["output"][index] = np.clip(np.round(output * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE)
        arrays["maps"][index] = np.concatenate(
            [features[layer.name].square().mean(0).clamp(max=6e4).numpy() for layer in layers], axis=1
        )
        arrays["features"][index] = np.concatenate(
            [_principal(features[layer.name], basis[layer.name], layer.feature_bands) for layer in layers], axis=1
        )
        if index % 100 == 99:
            for array in arrays.values():
                array.flush()
            done_file.write_text(str(index + 1))
    for array in arrays.values():
        array.flush()
    write_json(
        unfinished / "manifest.json",
        {
            "count": count,
            "layers": [[layer.name, layer.bands, layer.feature_bands] for layer in layers],
            "kept": {layer.name: float(basis[f"{layer.name} kept"]) for layer in layers},
        },
    )
    shutil.rmtree(out, ignore_errors=True)
    unfinished.rename(out)


def _open(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    if path.exists():
        array = np.lib.format.open_memmap(path, mode="r+")
        if array.shape[1:] != shape[1:] or len(array) < shape[0]:
            raise InputError(f"{path} holds {array.shape}, wanted is {shape}; delete it")
        return array
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def _basis(teach: Teach, layers: tuple[Layer, ...], noisy: np.ndarray, path: Path) -> dict[str, np.ndarray]:
    """By layer: its principal channels (16, C), and the share of its energy that they keep."""
    if not path.exists():
        moments: dict[str, Tensor] = {}
        for row in noisy[:_FOR_BASIS]:
            for name, x in teach(row.astype(np.float32) / _FULL_SCALE)[1].items():
                flat = x.flatten(1).double()
                moments[name] = moments.get(name, 0) + flat @ flat.T / flat.shape[1]
        found = {}
        for layer in layers:
            values, vectors = torch.linalg.eigh(moments[layer.name])
            kept = vectors[:, -CHANNELS:].T.flip(0).float()
            if len(kept) < CHANNELS:
                kept = functional.pad(kept, (0, 0, 0, CHANNELS - len(kept)))
            found[layer.name] = kept.numpy()
            found[f"{layer.name} kept"] = (values[-CHANNELS:].sum() / values.sum()).numpy()
        np.savez(path, **found)
    with np.load(path) as file:
        return dict(file)


def _principal(x: Tensor, basis: np.ndarray, bands: int) -> np.ndarray:
    """(C, T, F) to (T, 16 * bands)."""
    x = torch.tensordot(torch.from_numpy(basis), x, 1)
    if x.shape[-1] != bands:
        x = functional.adaptive_avg_pool2d(x, (x.shape[1], bands))
    return x.transpose(0, 1).flatten(1).clamp(-6e4, 6e4).numpy()


class Cache:
    """A teacher's rows, opened. Layers are in the order of the manifest, without those left out."""

    def __init__(self, folder: Path, leave_out: tuple[str, ...] = ("complex.0",)) -> None:
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
        except OSError as error:
            raise InputError(f"{folder} is no finished cache: {error}") from error
        self.count: int = manifest["count"]
        every = [Layer(*entry) for entry in manifest["layers"]]
        self._wanted = [layer.name not in leave_out for layer in every]
        self._every = every
        self.layers = tuple(layer for layer in every if layer.name not in leave_out)
        self._arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("output", "maps", "features")}

    def output(self, row: int, start: int, length: int) -> np.ndarray:
        return self._arrays["output"][row, start : start + length]

    def maps(self, rows: list[int], starts: list[int], frames: int) -> list[Tensor]:
        """Of every layer (B, frames, F)."""
        return list(self._cut("maps", rows, starts, frames, [layer.bands for layer in self._every]))

    def features(self, rows: list[int], starts: list[int], frames: int) -> list[Tensor]:
        """Of every layer (B, 16, frames, G)."""
        widths = [CHANNELS * layer.feature_bands for layer in self._every]
        return [
            x.unflatten(2, (CHANNELS, -1)).transpose(1, 2) for x in self._cut("features", rows, starts, frames, widths)
        ]

    def _cut(self, name: str, rows: list[int], starts: list[int], frames: int, widths: list[int]) -> Iterator[Tensor]:
        array = self._arrays[name]
        cut = np.stack([array[row, start : start + frames] for row, start in zip(rows, starts, strict=True)])
        parts = torch.from_numpy(cut).float().split(widths, dim=2)
        return (part for part, wanted in zip(parts, self._wanted, strict=True) if wanted)
