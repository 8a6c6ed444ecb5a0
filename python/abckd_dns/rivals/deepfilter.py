"""DeepFilterNet3 over whole utterances: its waveform without delay, and the features of its layers.

Its three graphs (encoder, ERB decoder, filter decoder) come as ONNX files; the features they expect, and what is done
with their outputs, is written anew here from the description of the method (Schroeter et al., 2022 and 2023) and its
constants. `by_library` gives the result of its own library, to compare with.

Frames are 10 ms apart, centred on 10 ms * t; the output at t has seen 20 ms of the future.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import torch

from ..constants import SAMPLE_RATE
from ..data.resampling import resample
from . import wheels
from .sessions import quiet_options, session

RATE = 48_000
_FFT, _HOP, _BINS = 960, 480, 481
_BANDS, _FILTERED = 32, 96  # bands of the mask, bins that are filtered
_ORDER, _AHEAD = 5, 2  # taps of a filter, frames of look-ahead
_MEMORY = 0.99  # of the running normalisations, per frame
_LEAST_DB, _MOST_DB, _MOST_FILTER_DB = -15.0, 35.0, 35.0

# Outputs inside of the graphs that are layers: after the activation.
ENCODER_LAYERS = ("e0", "e1", "e2", "e3", "c0")
_DECODER_OUTPUTS = {"d3": "/convt3/Relu_output_0", "d2": "/convt2/3/Relu_output_0", "d1": "/convt1/Relu_output_0"}
DECODER_LAYERS = tuple(_DECODER_OUTPUTS)


class Enhanced(NamedTuple):
    waveform: np.ndarray
    """(N,) at 16 kHz, aligned with the input."""
    features: dict[str, np.ndarray]
    """(64, T, F) by layer, T = 1 + N // 160 frames that are 10 ms apart."""


def band_widths() -> np.ndarray:
    """Bins of each of the bands, which have equal width in ERB but at least two bins."""

    def to_erb(hertz: float) -> float:
        return 9.265 * math.log1p(hertz / (24.7 * 9.265))

    def from_erb(erb: float) -> float:
        return 24.7 * 9.265 * math.expm1(erb / 9.265)

    step = to_erb(RATE / 2) / _BANDS
    widths, before, borrowed = [], 0, 0
    for band in range(1, _BANDS + 1):
        edge = round(from_erb(band * step) / (RATE / _FFT))
        width = edge - before - borrowed
        borrowed = max(0, 2 - width)
        widths.append(max(2, width))
        before = edge
    widths[-1] += 1
    widths[-1] -= max(0, sum(widths) - _BINS)
    return np.array(widths)


def band_centres() -> np.ndarray:
    """Hertz."""
    ends = np.cumsum(band_widths())
    return (ends - band_widths() / 2 - 0.5) * RATE / _FFT


class DeepFilter:
    """The network; `layers` are those whose features are kept, none by default."""

    def __init__(self, layers: tuple[str, ...] = ()) -> None:
        folder = next(wheels.unpacked(wheels.DEEPFILTER).rglob("enc.onnx")).parent
        self.layers = layers
        self._encoder = session(folder / "enc.onnx")
        inside = {name: _DECODER_OUTPUTS[name] for name in layers if name in _DECODER_OUTPUTS}
        self._mask = _with_inside(folder / "erb_dec.onnx", tuple(inside.values()))
        self._inside = inside
        self._filter = session(folder / "df_dec.onnx")
        widths = band_widths()
        self._band_of_bin = np.repeat(np.arange(_BANDS), widths)
        self._starts = np.concatenate(([0], np.cumsum(widths)[:-1]))
        self._widths = widths

    def __call__(self, noisy: np.ndarray) -> Enhanced:
        """`noisy` (N,) at 16 kHz."""
        wide = resampled(noisy, SAMPLE_RATE, RATE)
        spectrum = analyse(wide)
        enhanced, features = self._enhance(spectrum)
        narrow = resampled(synthesise(enhanced, len(wide)), RATE, SAMPLE_RATE)
        count = 1 + len(noisy) // (SAMPLE_RATE // 100)
        return Enhanced(narrow[: len(noisy)], {name: x[:, :count] for name, x in features.items()})

    def _enhance(self, spectrum: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        bands, bins = self._inputs(spectrum)
        names = [output.name for output in self._encoder.get_outputs()]
        encoded = dict(zip(names, self._encoder.run(None, {"feat_erb": bands, "feat_spec": bins}), strict=True))
        skips = {name: encoded[name] for name in ("emb", "e0", "e1", "e2", "e3")}
        mask, *inside = self._mask.run(["m", *self._inside.values()], skips)
        taps = self._filter.run(["coefs"], {"emb": encoded["emb"], "c0": encoded["c0"]})[0]
        taps = taps.reshape(len(spectrum), _FILTERED, _ORDER, 2)
        taps = taps[..., 0] + 1j * taps[..., 1]
        past = _ORDER - 1 - _AHEAD
        padded = np.pad(spectrum[:, :_FILTERED], ((past, _AHEAD), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, _ORDER, axis=0)
        enhanced = spectrum * mask[0, 0][:, self._band_of_bin]
        enhanced[:, :_FILTERED] = (windows * taps).sum(-1)
        found = {**encoded, **dict(zip(self._inside, inside, strict=True))}
        return enhanced, {name: found[name][0] for name in self.layers}

    def _inputs(self, spectrum: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Band levels with their running mean taken off, and bins over the root of their running magnitude.

        Both are advanced by the look-ahead: the encoder is causal.
        """
        power = np.square(np.abs(spectrum)).astype(np.float64)
        levels = 10 * np.log10(np.add.reduceat(power, self._starts, axis=1) / self._widths + 1e-10)
        bands = (levels - _running(levels, np.linspace(-60, -90, _BANDS))) / 40
        low = spectrum[:, :_FILTERED]
        bins = low / np.sqrt(_running(np.abs(low), np.linspace(0.001, 0.0001, _FILTERED)))
        bins = np.stack((bins.real, bins.imag))
        ahead = ((0, 0), (0, _AHEAD), (0, 0))
        bands = np.pad(bands[None], ahead)[:, _AHEAD:]
        bins = np.pad(bins, ahead)[:, _AHEAD:]
        return bands[None].astype(np.float32), bins[None].astype(np.float32)


def analyse(wide: np.ndarray) -> np.ndarray:
    """(frames, bins): frame t sees the samples from (t - 1) hops to (t + 1) hops."""
    frames = 2 + -(-len(wide) // _HOP) + _AHEAD
    padded = np.zeros((frames + 1) * _HOP)
    padded[_HOP : _HOP + len(wide)] = wide
    views = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[::_HOP]
    return (np.fft.rfft(views * _window()) / _FFT).astype(np.complex64)


def synthesise(spectrum: np.ndarray, length: int) -> np.ndarray:
    frames = np.fft.irfft(spectrum * _FFT) * _window()
    halves = frames.reshape(len(frames), 2, _HOP)
    wide = np.zeros((len(frames) + 1, _HOP))
    wide[:-1] += halves[:, 0]
    wide[1:] += halves[:, 1]
    return wide.reshape(-1)[_HOP : _HOP + length].astype(np.float32)


def _window() -> np.ndarray:
    """Vorbis: its square sums to 1 over frames that are a hop apart."""
    phase = np.pi * (np.arange(_FFT) + 0.5) / _FFT
    return np.sin(0.5 * np.pi * np.sin(phase) ** 2)


def _running(values: np.ndarray, state: np.ndarray) -> np.ndarray:
    """Means over the past of (T, F) that forget exponentially, with the present in them."""
    means = np.empty_like(values, dtype=np.float64)
    for index, row in enumerate(values):
        state = _MEMORY * state + (1 - _MEMORY) * row
        means[index] = state
    return means


def resampled(waveform: np.ndarray, source: int, target: int) -> np.ndarray:
    return resample(torch.from_numpy(np.asarray(waveform, np.float32)), source, target).numpy()


def _with_inside(path: Path, inside: tuple[str, ...]) -> onnxruntime.InferenceSession:
    """As `session`; `inside` are names of values in the graph that become outputs."""
    if not inside:
        return session(path)
    import onnx

    model = onnx.load(str(path))
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in inside)
    return onnxruntime.InferenceSession(model.SerializeToString(), quiet_options(), providers=["CPUExecutionProvider"])


def by_library(noisy: np.ndarray) -> np.ndarray:
    """What DeepFilterNet's own library makes of (N,) at 16 kHz, without its delay."""
    return np.concatenate(list(_library_frames(resampled(noisy, SAMPLE_RATE, RATE), len(noisy))))[: len(noisy)]


def _library_frames(wide: np.ndarray, length: int) -> Iterator[np.ndarray]:
    library = ctypes.CDLL(str(wheels.find(wheels.DEEPFILTER_LIBRARY)))
    library.df_create.restype = ctypes.c_void_p
    library.df_create.argtypes = [ctypes.c_char_p, ctypes.c_float, ctypes.c_char_p]
    pointer = ctypes.POINTER(ctypes.c_float)
    library.df_process_frame.argtypes = [ctypes.c_void_p, pointer, pointer]
    library.df_process_frame.restype = ctypes.c_float
    library.df_free.argtypes = [ctypes.c_void_p]
    state = library.df_create(str(wheels.find(wheels.DEEPFILTER)).encode(), 100.0, None)
    delay = _FFT - _HOP + _AHEAD * _HOP
    padded = np.concatenate((wide, np.zeros(delay + _HOP, np.float32)))
    padded = padded[: len(padded) // _HOP * _HOP].astype(np.float32)
    out = np.zeros_like(padded)
    for start in range(0, len(padded), _HOP):
        frame, result = padded[start : start + _HOP].copy(), np.zeros(_HOP, np.float32)
        library.df_process_frame(state, frame.ctypes.data_as(pointer), result.ctypes.data_as(pointer))
        out[start : start + _HOP] = result
    library.df_free(state)
    yield resampled(out[delay : delay + len(wide)], RATE, SAMPLE_RATE)
