"""Networks out of their names, and checkpoints.

A checkpoint is one safetensors file. It holds numbers and a JSON configuration, no code, and names no code
that loading it would run: networks of your own are named by their factory.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..constants import SAMPLE_RATE
from ..errors import InputError
from ..files import write_atomically
from ..own_code import function_of
from .config import PRESETS, DenoiserConfig, GtcrnConfig
from .denoiser import Denoiser
from .gtcrn import Gtcrn
from .masking import MaskNetwork
from .names import parse_name


def load_network(name: str, argument: str, *, new: bool = False) -> nn.Module:
    """The network that `name` names (see names.py), on the CPU. `argument` is what errors blame. new: presets count."""
    found = parse_name(name, argument, new=new)
    if found.factory is not None:
        network = _call_factory(":".join(found.factory), argument)
        if found.checkpoint is not None:
            _load_weights(network, found.checkpoint, argument)
        return network
    if found.preset is not None:
        return make(PRESETS[found.preset])
    path = found.checkpoint
    metadata = _read_metadata(path, argument)
    kind = next((kind for kind in FAMILIES if kind in metadata), None)
    if kind is None:
        raise InputError(
            f"{argument}: {path} has the weights of {metadata.get('class', 'an unknown network')}, not of a "
            f"network of this package; write package.module:factory@{name}"
        )
    config = json.loads(metadata[kind])
    config = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
    network = make(FAMILIES[kind][0](**config))
    _load_weights(network, path, argument)
    return network


FAMILIES: dict[str, tuple[type, type[MaskNetwork]]] = {
    "denoiser": (DenoiserConfig, Denoiser),
    "gtcrn": (GtcrnConfig, Gtcrn),
}
"""The networks of this package, by what their checkpoints call their configuration."""


def make(config: Any) -> MaskNetwork:
    """A new network of this package."""
    (network,) = (network for kind, network in FAMILIES.values() if kind is type(config))
    return network(config)


def described(network: MaskNetwork) -> dict[str, str]:
    """Its configuration, for the metadata of files."""
    (kind,) = (kind for kind, (config, _) in FAMILIES.items() if config is type(network.config))
    return {kind: json.dumps(asdict(network.config))}


def new_network(name: str | None, argument: str, default: str, init: Path | None) -> nn.Module:
    """A network to be trained: the one that `name` names, or that of the checkpoint `init`, or `default`. With both
    `name` and `init` it has the weights of the checkpoint."""
    if init is None:
        return load_network(default if name is None else name, argument, new=True)
    if name is None:
        return load_network(str(init), "--init")
    network = load_network(name, argument, new=True)
    _load_weights(network, parse_name(str(init), "--init").checkpoint, "--init")
    return network


def to_channels_last(network: nn.Module) -> None:
    """Lay out what convolves (B, C, T, F) so that its results lie as (B, T, F, C); the others have no such layout."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def save_checkpoint(path: Path, network: nn.Module) -> None:
    """After a crash, at any moment, `path` holds the weights before or these."""
    metadata = {"class": f"{type(network).__module__}.{type(network).__qualname__}"}
    if isinstance(network, MaskNetwork):
        metadata |= described(network)
    write_atomically(path, lambda unfinished: safetensors.torch.save_model(network, str(unfinished), metadata))


def _call_factory(name: str, argument: str) -> nn.Module:
    function = function_of(name, argument)
    try:
        network = function()
    except TypeError as error:
        raise InputError(f"{argument}: {name}() failed, expected a function without arguments: {error}") from error
    except Exception as error:  # whatever a foreign function may raise
        raise InputError(f"{argument}: {name}() failed: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"{argument}: {name}() returned a {type(network).__name__}, expected a torch.nn.Module")
    _check_interface(network, name, argument)
    return network


def _check_interface(network: nn.Module, name: str, argument: str) -> None:
    waveform = torch.zeros(2, SAMPLE_RATE)
    was_training = network.training
    with torch.no_grad():
        try:
            output = network.eval()(waveform)
        except Exception as error:  # whatever a foreign network may raise
            raise InputError(
                f"{argument}: the network of {name} failed on a noisy waveform (2, {SAMPLE_RATE}): "
                f"{type(error).__name__}: {error}"
            ) from error
    network.train(was_training)
    if not isinstance(output, Tensor) or output.shape != waveform.shape:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(
            f"{argument}: the network of {name} must map a noisy waveform (B, N) to an enhanced one (B, N), "
            f"but (2, {SAMPLE_RATE}) gave {found}"
        )


def _read_metadata(path: Path, argument: str) -> dict[str, str]:
    try:
        with safetensors.safe_open(path, framework="pt") as checkpoint:
            return checkpoint.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{argument}: {path} is not a safetensors file: {error}") from error


def _load_weights(network: nn.Module, path: Path, argument: str) -> None:
    _read_metadata(path, argument)  # for its error message
    try:
        safetensors.torch.load_model(network, path)
    except RuntimeError as error:
        raise InputError(f"{argument}: the weights in {path} do not fit the network: {error}") from error
