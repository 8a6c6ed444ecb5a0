"""The training loop, shared by all systems, and the command `train`.

A system is a module that maps a batch to a dictionary of scalars, of which "loss" is minimised and all are
logged (and "attention" (n, m) is drawn); its attribute `network` is what is saved. Devices, processes and
precision are those of `accelerate launch`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .data import MixtureOptions, Mixtures
from .errors import InputError
from .networks import CHECKPOINT_NAME, load_network, save_checkpoint
from .objective import SpeechLoss
from .stft import SAMPLE_RATE


@dataclass(kw_only=True)
class TrainingOptions(MixtureOptions):
    """What every training run needs."""

    out: Path
    """Folder of the run: configuration, checkpoint, TensorBoard log."""
    steps: int = 20_000
    """Optimiser steps."""
    batch_size: int = 16
    """Examples per step and process."""
    segment_seconds: float = 2.0
    """Length of an example."""
    lr: float = 2e-3
    """Peak learning rate, reached after a twentieth of the steps and then lowered to 0 along a cosine."""
    clip: float = 1.0
    """Norm to which gradients are clipped."""
    seed: int = 0
    """Seed of weights and examples."""
    workers: int = min(8, (os.cpu_count() or 1) // 4)
    """Processes that make examples; 0 makes them in the training process, which is faster on few cores."""
    log_every: int = 20
    """Steps between log entries, each the mean of the steps since the last."""
    save_every: int = 1000
    """Steps between checkpoints; the last step is always saved."""

    def __post_init__(self) -> None:
        for argument in ("steps", "batch_size", "segment_seconds", "lr", "clip", "log_every", "save_every"):
            if not getattr(self, argument) > 0:
                raise InputError(f"--{argument.replace('_', '-')}: expected more than 0, got {getattr(self, argument)}")

    @property
    def segment_length(self) -> int:
        return round(self.segment_seconds * SAMPLE_RATE)

    @property
    def example_count(self) -> int:
        return self.steps * self.batch_size * PartialState().num_processes


@dataclass(kw_only=True)
class TrainOptions(TrainingOptions):
    """Train a network on mixtures of clean speech and noise."""

    preset: str = "teacher"
    """teacher, student, or package.module:factory for a network of your own."""


def train(options: TrainOptions) -> None:
    set_seed(options.seed)
    network = load_network(options.preset, "--preset", new=True)
    examples = Mixtures(options, options.segment_length, options.example_count, options.seed)
    fit(Supervised(network), examples, options)


class Supervised(nn.Module):
    """A network and clean labels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.speech_loss = SpeechLoss()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": self.speech_loss(self.network(batch["noisy"]), batch["clean"])}


def fit(
    system: nn.Module,
    examples: Dataset,
    options: TrainingOptions,
    draw_attention: Callable[[Tensor], Figure] | None = None,
) -> None:
    """Train `system` for `options.steps` steps and leave the run in `options.out`."""
    options.out.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(log_with="tensorboard", project_dir=options.out)
    accelerator.init_trackers("log")
    if accelerator.is_main_process:
        (options.out / "config.json").write_text(json.dumps(asdict(options), indent=2, default=str) + "\n")

    optimizer = torch.optim.AdamW([p for p in system.parameters() if p.requires_grad], lr=options.lr)
    # Not given to accelerate: it would step the schedule once per process.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_up_then_cosine(step, options.steps))
    loader = DataLoader(
        examples,
        options.batch_size,
        num_workers=options.workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    system, optimizer, loader = accelerator.prepare(system, optimizer, loader)
    system.train()

    means = _Means()
    progress = tqdm(loader, desc=options.out.name, unit="step", disable=not accelerator.is_local_main_process)
    for step, batch in enumerate(progress, start=1):
        outputs = system(batch)
        accelerator.backward(outputs["loss"])
        accelerator.clip_grad_norm_(system.parameters(), options.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

        means.add(outputs)
        is_save = step % options.save_every == 0 or step == options.steps
        if not (is_save or step % options.log_every == 0):
            continue  # reading a value makes a GPU wait
        logged = means.take(accelerator)
        attention = logged.pop("attention", None)
        scalars = {name: value.item() for name, value in logged.items()}
        if not math.isfinite(scalars["loss"]):
            raise InputError(
                f"the loss became {scalars['loss']} by step {step}; try a lower --lr or --clip, or bf16 in "
                f"place of fp16 (the last good checkpoint, if any, is in {options.out})"
            )
        progress.set_postfix(loss=f"{scalars['loss']:.4f}")
        accelerator.log({**scalars, "lr": schedule.get_last_lr()[0]}, step=step)
        if is_save and accelerator.is_main_process:
            save_checkpoint(options.out / CHECKPOINT_NAME, accelerator.unwrap_model(system).network)
            if draw_attention is not None:
                figure = draw_attention(attention)
                figure.savefig(options.out / "attention.png", dpi=150)
                accelerator.get_tracker("tensorboard", unwrap=True).add_figure("attention", figure, step)
    accelerator.end_training()


class _Means:
    """Means of what a system returned, over steps and processes, without making a GPU wait in between."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    def add(self, outputs: dict[str, Tensor]) -> None:
        for name, value in outputs.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach()
        self._steps += 1

    def take(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """The means since the last call."""
        means = {name: accelerator.reduce(total / self._steps, "mean") for name, total in self._sums.items()}
        self._sums, self._steps = {}, 0
        return means


def _warm_up_then_cosine(step: int, steps: int) -> float:
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
