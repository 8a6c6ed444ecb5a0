"""What a run tells: TensorBoard's curves, the picture of what a loss attends to, its progress and its end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ..files import writing
from ..network.names import CHECKPOINT_NAME
from ..options import TrainingOptions
from .runs import BEST_NAME

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


class Progress:
    """A bar on a terminal; elsewhere a line for every entry of the log. Only the first process of a machine tells."""

    def __init__(self, options: TrainingOptions, done: int, accelerator: Accelerator) -> None:
        self.name, self.steps, self.done = options.out.name, options.steps, done
        is_shown = accelerator.is_local_main_process
        is_terminal = sys.stderr.isatty()
        self._tells_lines = is_shown and not is_terminal
        self._bar = tqdm(
            desc=self.name, unit="step", initial=done, total=self.steps, disable=not (is_shown and is_terminal)
        )
        self._values: dict[str, float] = {}
        self._last = (done, time.monotonic())

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def advance(self) -> None:
        self.done += 1
        self._bar.update()

    def show(self, values: dict[str, float]) -> None:
        """What was measured last; the bar keeps what is not measured as often."""
        self._values |= values
        self._bar.set_postfix({name: f"{value:.4g}" for name, value in self._values.items()})
        if self._tells_lines:
            (before, then), now = self._last, time.monotonic()
            self._last = (self.done, now)
            speed = f"{(self.done - before) / max(now - then, 1e-9):.3g} steps/s"
            told = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            print(f"{self.name}: step {self.done} of {self.steps}, {told}, {speed}", file=sys.stderr, flush=True)


def closing_words(options: TrainingOptions, steps: int, best: dict[str, Any]) -> str:
    """Where the results of a finished run are, and what to do with them."""
    out = options.out
    why = "" if steps == options.steps else f" of {options.steps}: --patience {options.patience} has ended"
    lines = [f"{out} is finished: {steps} steps are done{why}", f"  {CHECKPOINT_NAME:<20} the network"]
    if options.ema:
        lines[-1] += ", the mean of its weights (--ema)"
    if "step" in best:
        measured = ", ".join(f"{name} {value:.4g}" for name, value in best["values"].items())
        lines.append(f"  {BEST_NAME:<20} the best one by --valid, of step {best['step']}: {measured}")
    chosen = out / BEST_NAME if "step" in best else out
    return "\n".join(
        [
            *lines,
            f"  {'log/':<20} curves: tensorboard --logdir {out}",
            "Next:",
            f"  abckd-dns evaluate --checkpoints {chosen} --pairs FOLDER_WITH_NOISY_AND_CLEAN",
            f"  abckd-dns denoise --checkpoint {chosen} --input NOISY.wav --output ENHANCED.wav",
            f"  abckd-dns export --checkpoint {chosen} --output MODEL.onnx",
        ]
    )
