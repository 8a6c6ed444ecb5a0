"""What a run tells while it goes on, and at its end."""

from __future__ import annotations

import sys
import time
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from ..network.names import CHECKPOINT_NAME
from ..options import TrainingOptions
from .runs import BEST_NAME


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
