"""The log of a run: TensorBoard's curves, and the picture of what a loss attends to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor

from ..files import writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DrawAttention = Callable[[Tensor], "Figure"]


class Log:
    """Means, over steps and processes, of what a system returns, of which "attention" (n, m) is drawn.

    Files lie in the folder `out`; writing them raises InputError where that is not possible.
    """

    def __init__(self, out: Path, accelerator: Accelerator, first: int, draw: DrawAttention | None) -> None:
        """Entries of steps from `first` on, that an interrupted run has left, are taken back."""
        self.out, self._accelerator, self._draw = out, accelerator, draw
        self._means, self._attention = _Means(), None
        accelerator.init_trackers("log", init_kwargs={"tensorboard": {"purge_step": first}})

    def add(self, outputs: dict[str, Tensor], counts: Tensor) -> None:
        """counts: bool on the device; a step that does not count is left out."""
        self._means.add(outputs, counts)

    def write(self, step: int, lr: float, skipped: int) -> float:
        """Write the means since the last time; returns that of the loss. A GPU waits here."""
        means = self._means.take(self._accelerator)
        self._attention = means.pop("attention", None)
        scalars = {name: value.item() for name, value in means.items()}
        with writing(self.out):
            self._accelerator.log({**scalars, "lr": lr, "skipped": skipped}, step=step)
        return scalars["loss"]

    def write_values(self, values: dict[str, float], step: int) -> None:
        """Write what is the same in all processes."""
        with writing(self.out):
            self._accelerator.log(values, step=step)

    def draw(self, step: int) -> None:
        """Draw the attention that was last written, if the system has any."""
        if self._attention is None or self._draw is None or not self._accelerator.is_main_process:
            return
        with writing(self.out):
            figure = self._draw(self._attention)
            figure.savefig(self.out / "attention.png", dpi=150)
            self._accelerator.get_tracker("tensorboard", unwrap=True).add_figure("attention", figure, step)


class _Means:
    """Means over steps and processes, without making a GPU wait in between."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps: Tensor | int = 0

    def add(self, outputs: dict[str, Tensor], counts: Tensor) -> None:
        for name, value in outputs.items():
            self._sums[name] = self._sums.get(name, 0) + torch.where(counts, value.detach(), 0)
        self._steps = self._steps + counts

    def take(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """The means since the last call, NaN if no step counted."""
        means = {name: accelerator.reduce(total / self._steps, "mean") for name, total in self._sums.items()}
        self._sums, self._steps = {}, 0
        return means
