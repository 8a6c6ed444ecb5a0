"""The picture of a recording. Figures are made without pyplot: no display, nothing to close."""

from __future__ import annotations

from matplotlib.figure import Figure
from torch import Tensor

from ..constants import SAMPLE_RATE
from ..network.stft import HOP, Stft

_RANGE_DB = (-45, 25)  # from silence to the strongest harmonics of speech at -25 dBFS


def spectrogram_figure(waveform: Tensor, title: str) -> Figure:
    """Magnitude in dB of a waveform (N,) at 16 kHz."""
    magnitude = Stft()(waveform[None])[0].abs()
    decibels = 20 * magnitude.clamp(min=1e-5).log10()
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.add_subplot()
    extent = (0, magnitude.shape[0] * HOP / SAMPLE_RATE, 0, SAMPLE_RATE / 2000)
    image = axes.imshow(
        decibels.T.numpy(),
        origin="lower",
        aspect="auto",
        extent=extent,
        cmap="magma",
        vmin=_RANGE_DB[0],
        vmax=_RANGE_DB[1],
    )
    axes.set_title(title)
    axes.set_xlabel("time (s)")
    axes.set_ylabel("frequency (kHz)")
    figure.colorbar(image, ax=axes, label="dB")
    return figure
