"""Running a network on sound of any length: blocks in, blocks out, and arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..constants import SAMPLE_RATE
from ..data.resampling import resample_blocks
from ..errors import InputError, remark
from ..network.device import best_device
from ..network.load import load_network
from ..network.masking import MaskNetwork
from ..network.names import parse_name
from ..network.stft import HOP
from ..network.streaming import DELAY, StreamingDenoiser, flush

_STEPS = 10 * SAMPLE_RATE // HOP
"""Steps of a network of this package that are done at once: 10 s."""
_WINDOW = 60 * SAMPLE_RATE
_OVERLAP = 4 * SAMPLE_RATE
"""Other networks keep no state between calls. What is longer than a window they enhance window by window; where two
overlap, the one is faded into the other."""


def enhance(network: nn.Module, noisy: Tensor) -> Tensor:
    """Noisy waveform (N,) or (channels, N) at 16 kHz to the enhanced one, on the CPU; each channel alone."""
    blocks = noisy.view(-1, noisy.shape[-1]).split(_STEPS * HOP, dim=-1)
    return torch.cat(list(enhance_blocks(network, blocks)), dim=-1).view_as(noisy)


def enhance_array(array: np.ndarray, rate: int, network: nn.Module | str) -> np.ndarray:
    """Enhance sound in memory.

    array    (N,) or (N, channels), as soundfile reads it: floating point with full scale 1, or integers of full range;
             each channel is enhanced alone
    rate     in Hz; the network works at 16 kHz, and what is above 8 kHz is lost
    network  a network, or its name: a checkpoint, a run's folder, or package.module:factory@checkpoint

    Returns an array of the same shape and dtype. Raises InputError if one of them is not what it must be.
    """
    array = np.asarray(array)
    if array.ndim not in (1, 2) or not array.size:
        raise InputError(f"array: expected samples (N,) or (N, channels), got shape {array.shape}")
    if array.dtype.kind not in "fi":
        raise InputError(f"array: expected floating-point or signed integer samples, got {array.dtype}")
    if not 1 <= rate == int(rate):
        raise InputError(f"rate: expected a whole number of Hz, got {rate!r}")
    full_scale = 1.0 if array.dtype.kind == "f" else -float(np.iinfo(array.dtype).min)
    samples = torch.from_numpy(np.atleast_2d(array.T).astype(np.float32) / np.float32(full_scale))
    if not samples.isfinite().all():
        raise InputError("array: it has samples that are not finite numbers")
    network = _loaded(network) if isinstance(network, str) else network
    enhanced = torch.cat(list(enhance_at(network, samples.split(10 * rate, dim=-1), rate)), dim=-1)
    if not enhanced.isfinite().all():
        raise InputError("network: its output has samples that are not finite numbers")
    result = enhanced.numpy().T.reshape(array.shape)
    if full_scale == 1:
        return result.astype(array.dtype)
    limits = np.iinfo(array.dtype)
    return np.clip(np.round(result.astype(np.float64) * full_scale), limits.min, limits.max).astype(array.dtype)


def _loaded(name: str) -> nn.Module:
    checkpoint = parse_name(name, "network").checkpoint
    return _load_once(name, checkpoint and (checkpoint, checkpoint.stat().st_mtime_ns))


@functools.lru_cache(maxsize=4)
def _load_once(name: str, version: tuple[Path, int] | None) -> nn.Module:
    return load_network(name, "network").to(best_device()).eval()


def enhance_at(network: nn.Module, blocks: Iterable[Tensor], rate: int) -> Iterator[Tensor]:
    """As `enhance_blocks`, of blocks at `rate` Hz to as many samples at that rate."""
    count = 0

    def counted() -> Iterator[Tensor]:
        nonlocal count
        for block in blocks:
            count += block.shape[-1]
            yield block

    enhanced = enhance_blocks(network, resample_blocks(counted(), rate, SAMPLE_RATE))
    given = 0
    for block in resample_blocks(enhanced, SAMPLE_RATE, rate):
        block = block[:, : count - given]  # rounding up, twice, leaves a few samples too many
        given += block.shape[-1]
        yield block


@torch.inference_mode()
def enhance_blocks(network: nn.Module, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Noisy sound (channels, n) at 16 kHz, block by block, to the enhanced sound in blocks of other lengths.

    Networks of this package carry their state from block to block, so that the result is that of the whole;
    a `StreamingDenoiser` goes through it step by step. Other networks take windows of a minute.
    """
    if isinstance(network, MaskNetwork):
        network = StreamingDenoiser(network)
        yield from _by_steps(network, network.steps, _STEPS * HOP, blocks)
    elif isinstance(network, StreamingDenoiser):
        yield from _by_steps(network, network.step, HOP, blocks)
    else:
        yield from _by_windows(network, blocks)


def _by_steps(network: StreamingDenoiser, step: Callable, size: int, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    device = next(network.parameters()).device
    state, skip, rest = None, DELAY, None
    for block in blocks:
        block = block.to(device)
        if state is None:
            state, rest = network.initial_state(len(block)), block[:, :0]
        enhanced, rest = [], torch.cat((rest, block), dim=-1)
        whole = rest.shape[-1] // HOP * HOP
        for samples in rest[:, :whole].split(size, dim=-1) if whole else ():
            output, state = step(samples, state)
            enhanced.append(output)
        rest = rest[:, whole:]
        if enhanced:
            joined = torch.cat(enhanced, dim=-1)[:, skip:]
            skip = max(0, skip - whole)
            yield joined.float().cpu()
    if state is not None:
        yield flush(network.step, rest, state)[:, skip:].float().cpu()


def _by_windows(network: nn.Module, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    device = next(network.parameters()).device

    def run(samples: Tensor) -> Tensor:
        return network(samples.to(device)).float().cpu()

    waiting, faded = None, None  # what no window has enhanced to its end, and what the last one made of its begin
    for block in blocks:
        waiting = block if waiting is None else torch.cat((waiting, block), dim=-1)
        while waiting.shape[-1] > _WINDOW:
            if faded is None:
                _remark_windows(type(network).__name__)
            enhanced = _fade(faded, run(waiting[:, :_WINDOW]))
            yield enhanced[:, : _WINDOW - _OVERLAP]
            faded, waiting = enhanced[:, _WINDOW - _OVERLAP :], waiting[:, _WINDOW - _OVERLAP :].clone()
    if waiting is not None:
        yield _fade(faded, run(waiting))


def _fade(before: Tensor | None, after: Tensor) -> Tensor:
    if before is None:
        return after
    share = torch.linspace(0, 1, before.shape[-1])
    begin = torch.lerp(before, after[:, : before.shape[-1]], share)
    return torch.cat((begin, after[:, before.shape[-1] :]), dim=-1)


@functools.cache
def _remark_windows(name: str) -> None:
    remark(
        f"{name} is no network of this package: recordings of more than {_WINDOW // SAMPLE_RATE} s are enhanced in "
        f"windows of that length which overlap by {_OVERLAP // SAMPLE_RATE} s"
    )
