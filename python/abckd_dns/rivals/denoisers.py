"""Public denoisers as functions: a noisy waveform (N,) at 16 kHz to an enhanced one that is aligned with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from ..network.stft import Stft
from . import wheels
from .deepfilter import DeepFilter
from .sessions import session

Denoise = Callable[[np.ndarray], np.ndarray]


def gtcrn() -> Denoise:
    """GTCRN, trained on DNS3, frame by frame; its transform is that of this project."""
    network, stft = session(wheels.find(wheels.GTCRN)), Stft()
    zeros = [np.zeros(x.shape, np.float32) for x in network.get_inputs()[1:]]
    names = [x.name for x in network.get_inputs()]

    def denoise(waveform: np.ndarray) -> np.ndarray:
        spectrum = torch.view_as_real(stft(torch.from_numpy(waveform)[None])[0]).numpy()  # (T, BINS, 2)
        states, frames = zeros, []
        for frame in spectrum:
            result, *states = network.run(None, dict(zip(names, [frame[None, :, None], *states], strict=True)))
            frames.append(result[0, :, 0])
        enhanced = torch.view_as_complex(torch.from_numpy(np.stack(frames)).contiguous())
        return stft.inverse(enhanced[None], len(waveform))[0].numpy()

    return denoise


def dtln() -> Denoise:
    """DTLN: blocks of 512 samples, 128 apart; a mask on magnitudes, then a correction in time."""
    first, second = (session(wheels.find(wheel)) for wheel in (wheels.DTLN_1, wheels.DTLN_2))
    names = [[x.name for x in network.get_inputs()] for network in (first, second)]
    zeros = [np.zeros(network.get_inputs()[1].shape, np.float32) for network in (first, second)]
    block, shift = 512, 128

    def denoise(waveform: np.ndarray) -> np.ndarray:
        before = block - shift
        count = -(-(len(waveform) + before) // shift)
        padded = np.zeros(before + count * shift, np.float32)
        padded[before : before + len(waveform)] = waveform
        out = np.zeros_like(padded)
        states = list(zeros)
        for start in range(0, count * shift, shift):
            spectrum = np.fft.rfft(padded[start : start + block])
            magnitude = np.abs(spectrum).astype(np.float32)[None, None]
            mask, states[0] = first.run(None, dict(zip(names[0], (magnitude, states[0]), strict=True)))
            masked = np.fft.irfft(mask[0, 0] * spectrum).astype(np.float32)[None, None]
            result, states[1] = second.run(None, dict(zip(names[1], (masked, states[1]), strict=True)))
            out[start : start + block] += result[0, 0]
        return out[before : before + len(waveform)]

    return denoise


def nsnet2() -> Denoise:
    """NSNet2, the DNS Challenge's baseline: gains over frames of 20 ms, 10 ms apart, of log power."""
    network = session(wheels.find(wheels.NSNET2))
    name = network.get_inputs()[0].name
    size, hop = 320, 160
    window = np.sqrt(np.hanning(size))

    def denoise(waveform: np.ndarray) -> np.ndarray:
        count = 1 + -(-len(waveform) // hop)
        padded = np.zeros((count + 1) * hop)
        padded[hop : hop + len(waveform)] = waveform
        frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop] * window
        spectrum = np.fft.rfft(frames)
        power = np.log10(np.maximum(np.square(np.abs(spectrum)), 1e-12)).astype(np.float32)
        gains = network.run(None, {name: power[None]})[0][0].clip(1e-4, 1)
        halves = (np.fft.irfft(spectrum * gains) * window).reshape(count, 2, hop)
        out = np.zeros((count + 1, hop))
        out[:-1] += halves[:, 0]
        out[1:] += halves[:, 1]
        return out.reshape(-1)[hop : hop + len(waveform)].astype(np.float32)

    return denoise


def deepfilter() -> Denoise:
    """DeepFilterNet3 at 48 kHz."""
    network = DeepFilter()
    return lambda waveform: network(waveform).waveform


class Rival(NamedTuple):
    """A public denoiser and what it costs."""

    title: str
    make: Callable[[], Denoise]
    wheels: tuple[wheels.Wheel, ...]
    parameters: int
    """Learned ones."""
    macs: float
    """Multiply-accumulate operations per second of sound, of convolutions, matrix products and recurrent layers,
    counted from the shapes in its graphs; without its transform."""
    latency: float
    """Seconds: its frame, and the future that it looks at."""


RIVALS: dict[str, Rival] = {
    "nsnet2": Rival("NSNet2", nsnet2, (wheels.NSNET2,), 2_687_561, 268.1e6, 0.020),
    "gtcrn": Rival("GTCRN", gtcrn, (wheels.GTCRN,), 23_652, 31.1e6, 0.032),
    "dtln": Rival("DTLN", dtln, (wheels.DTLN_1, wheels.DTLN_2), 987_778, 123.0e6, 0.032),
    "dfn3": Rival("DeepFilterNet3", deepfilter, (wheels.DEEPFILTER,), 2_134_645, 330.8e6, 0.040),
}
