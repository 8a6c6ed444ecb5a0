"""Pictures. Figures are made without pyplot: nothing global, no display, nothing to close."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from ..network.stft import HOP, SAMPLE_RATE, Stft

_RANGE_DB = (-45, 25)  # from silence to the strongest harmonics of speech at -25 dBFS


def attention_figure(attention: Tensor, student_layers: Sequence[str], teacher_layers: Sequence[str]) -> Figure:
    """Attention (n, m) as a matrix: which teacher layers (columns) each student layer (rows) learns from."""
    rows, columns = attention.shape
    figure = Figure(figsize=(2.5 + 0.6 * columns, 1.8 + 0.5 * rows), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(attention.cpu().numpy(), vmin=0, cmap="viridis", aspect="auto")
    axes.set_xticks(range(columns), teacher_layers, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(rows), student_layers)
    axes.set_xlabel("teacher layer")
    axes.set_ylabel("student layer")
    figure.colorbar(image, ax=axes, label="attention")
    return figure


def recorded_attention(
    run: Path, attention: Tensor, student_layers: Sequence[str], teacher_layers: Sequence[str]
) -> Figure:
    """`attention_figure`, and the numbers in it as attention.csv in the folder of the run."""
    with (run / "attention.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["student_layer", "teacher_layer", "attention"])
        for student, row in zip(student_layers, attention.tolist(), strict=True):
            for teacher, weight in zip(teacher_layers, row, strict=True):
                writer.writerow([student, teacher, f"{weight:.4f}"])
    return attention_figure(attention, student_layers, teacher_layers)


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
