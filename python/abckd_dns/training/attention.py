"""The picture of what a loss attends to. Figures are made without pyplot: nothing global, nothing to close."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor


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
