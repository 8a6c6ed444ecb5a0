"""A training run, shared by all commands that train.

A system is a module that maps a batch to a dictionary of scalars, of which "loss" is minimised and all are
logged (and "attention" (n, m) is drawn); its attribute `network` is what is saved. Devices, processes and
precision are those of `accelerate launch`.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object, set_seed
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..data.mixtures import MixtureOptions
from ..errors import InputError, check_at_least, check_positive
from ..network.load import CHECKPOINT_NAME, save_checkpoint, to_channels_last
from ..network.stft import SAMPLE_RATE
from .processes import only_cpu, processes
from .safeguards import Interruption, StepGuard
from .states import (
    CONFIG_NAME,
    FINISHED_NAME,
    States,
    check_same_run,
    has_begun,
    is_finished,
    learned_state,
    load_learned_state,
    random_state,
    set_random_state,
    write_atomically,
    write_json,
    writing,
)

DrawAttention = Callable[[Tensor], Figure]


@dataclass(kw_only=True)
class TrainingOptions(MixtureOptions):
    """What every training run needs."""

    out: Path
    """Folder of the run: configuration, checkpoint, TensorBoard log. Where it holds the same run, interrupted,
    that run goes on as if it had not been."""
    prepared: Path | None = None
    """Folder that `abckd-dns prepare` made, in place of --clean and --noise."""
    steps: int = 20_000
    """Optimiser steps."""
    batch_size: int = 16
    """Examples per step and process: N processes with B do what one process with N B does."""
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
    max_skipped: int = 20
    """A step whose loss or gradient is not finite is skipped; this many in a row end the run."""
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """Precision of the networks; fp16 needs a GPU. By default that of accelerate launch, which is fp32."""

    def __post_init__(self) -> None:
        check_positive(self, *"steps batch_size lr clip log_every save_every max_skipped".split())
        check_at_least(self, 0, "seed", "workers")
        check_at_least(self, 1 / SAMPLE_RATE, "segment_seconds")

    @property
    def segment_length(self) -> int:
        return round(self.segment_seconds * SAMPLE_RATE)

    @property
    def example_count(self) -> int:
        return self.steps * self.batch_size * processes().num_processes


def is_done(options: TrainingOptions) -> bool:
    """Whether the run in --out has nothing left to do, which is printed. Raises InputError if it is another run."""
    if not has_begun(options.out):
        return False
    check_same_run(options.out, asdict(options))
    if is_finished(options.out):
        processes().print(f"{options.out} is finished: {options.steps} steps are done")
    return is_finished(options.out)


def fit(
    system: nn.Module, examples: Dataset, options: TrainingOptions, draw_attention: DrawAttention | None = None
) -> None:
    """Train `system` for `options.steps` steps, from where the run in `options.out` stands, and leave it there.

    Raises InputError, and SystemExit after a state was saved because of SIGTERM or SIGINT.
    """
    with writing(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    run = _Run(system, examples, options, draw_attention)
    run.go_on()
    run.end()


class _Run:
    """What one process of a run holds, after `step` steps."""

    def __init__(
        self, system: nn.Module, examples: Dataset, options: TrainingOptions, draw_attention: DrawAttention | None
    ) -> None:
        self.options, self.draw_attention = options, draw_attention
        self.accelerator = accelerator = _accelerator(options)
        self.states, self.means, self.is_stopped = States(options.out), _Means(), False
        state = self._begun()
        self.step = 0 if state is None else state["step"]
        accelerator.init_trackers("log", init_kwargs={"tensorboard": {"purge_step": self.step + 1}})

        system.train()
        if accelerator.mixed_precision != "no":
            to_channels_last(system)  # what tensor cores and AMX convolve
        # Fused: it can be told to leave a step out without the CPU knowing (StepGuard).
        self.adam = torch.optim.AdamW([p for p in system.parameters() if p.requires_grad], lr=options.lr, fused=True)
        # Not given to accelerate: it would step the schedule once per process.
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.adam, lambda step: _warm_up_then_cosine(step, options.steps)
        )
        if state is not None:
            load_learned_state(system, state["learned"], options.out)
            self.schedule.load_state_dict(state["schedule"])
            self.adam.load_state_dict(state["optimizer"])
        self.interruption = Interruption()
        self.loader = _loader(examples, options, accelerator, self.step, self.interruption)
        self.system, self.optimizer = accelerator.prepare(system, self.adam)
        self.guard = StepGuard(self._trained, self.adam, accelerator.device)
        set_seed(options.seed, device_specific=True)  # processes share weights and must not share dropout
        if state is not None:
            self.guard.resume(*state["skipped"])
            set_random_state(state["random"][accelerator.process_index], accelerator.device)
            if accelerator.scaler is not None:
                accelerator.scaler.load_state_dict(state["scaler"])
            accelerator.print(f"{options.out} continues after step {self.step}")

    def _begun(self) -> dict[str, Any] | None:
        """The state to go on from; a new run's configuration is written."""
        out, count = self.options.out, self.accelerator.num_processes
        state = self.states.newest()
        if state is None:
            if self.accelerator.is_main_process:
                write_json(out / CONFIG_NAME, asdict(self.options))
        elif state["processes"] != count:
            raise InputError(
                f"--out: {out} holds a run of {state['processes']} processes, which {count} cannot continue; start as "
                "many, or choose another folder"
            )
        return state

    @property
    def _trained(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.system)

    def go_on(self) -> None:
        """Take the steps that are left, or those until a signal comes."""
        progress = tqdm(
            self.loader,
            desc=self.options.out.name,
            unit="step",
            initial=self.step,
            total=self.options.steps,
            disable=not self.accelerator.is_local_main_process,
        )
        with self.interruption:
            for batch in progress:
                batch = {name: x.to(self.accelerator.device, non_blocking=True) for name, x in batch.items()}
                self._learn(batch)
                self.step += 1
                self._log_and_save(batch, progress)
                if self.is_stopped:
                    break

    def _learn(self, batch: dict[str, Tensor]) -> None:
        self.guard.before_step()
        outputs = self.system(batch)
        self.accelerator.backward(self.guard.spread(outputs["loss"]))
        norm = self.accelerator.clip_grad_norm_(self.system.parameters(), self.options.clip)
        self.means.add(outputs, counts=self.guard.judge(norm))
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()

    def _log_and_save(self, batch: dict[str, Tensor], progress: tqdm) -> None:
        """Stop, log and save, where it is time for that."""
        options, step = self.options, self.step
        is_save = step % options.save_every == 0 or step == options.steps
        is_log = step % options.log_every == 0 or is_save
        is_read = is_log or step % options.max_skipped == 0  # reading a value makes a GPU wait
        if is_read or self.accelerator.num_processes == 1:
            self.is_stopped = _in_any_process(self.interruption.received is not None, self.accelerator)
            is_save, is_log, is_read = (x or self.is_stopped for x in (is_save, is_log, is_read))
        if not is_read:
            return
        skipped, in_a_row = self.guard.read()
        if in_a_row >= options.max_skipped:
            _give_up(in_a_row, step, batch, self.accelerator, options)
        attention = self._log(skipped, progress) if is_log else None
        if is_save:
            # Before the state: a run that was killed in between draws it again.
            if attention is not None:
                self._draw(attention)
            self._save()

    def _log(self, skipped: int, progress: tqdm) -> Tensor | None:
        """Log the means since the last time. Returns the attention, if the system has any."""
        logged = self.means.take(self.accelerator)
        attention = logged.pop("attention", None)
        scalars = {name: value.item() for name, value in logged.items()}
        progress.set_postfix(loss=f"{scalars['loss']:.4f}")
        with writing(self.options.out):
            self.accelerator.log({**scalars, "lr": self.schedule.get_last_lr()[0], "skipped": skipped}, step=self.step)
        return attention

    def _draw(self, attention: Tensor) -> None:
        if self.draw_attention is None or not self.accelerator.is_main_process:
            return
        with writing(self.options.out):
            figure = self.draw_attention(attention)
            figure.savefig(self.options.out / "attention.png", dpi=150)
            self.accelerator.get_tracker("tensorboard", unwrap=True).add_figure("attention", figure, self.step)

    def _save(self) -> None:
        accelerator = self.accelerator
        randoms = gather_object([random_state(accelerator.device)])
        if not accelerator.is_main_process:
            return
        self.states.save(
            self.step,
            {
                "step": self.step,
                "processes": accelerator.num_processes,
                "learned": learned_state(self._trained),
                "optimizer": self.adam.state_dict(),
                "schedule": self.schedule.state_dict(),
                "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
                "skipped": self.guard.read(),
                "random": randoms,
            },
        )
        save_checkpoint(self.options.out / CHECKPOINT_NAME, self._trained.network)

    def end(self) -> None:
        """Finish the run if all steps are done. Raises SystemExit if a signal stopped it."""
        out, steps, accelerator = self.options.out, self.options.steps, self.accelerator
        if self.step == steps and accelerator.is_main_process:
            write_json(out / FINISHED_NAME, {"steps": steps, "skipped": self.guard.read()[0]})
            self.states.remove()
        accelerator.wait_for_everyone()
        accelerator.end_training()
        if self.is_stopped:
            number = self.interruption.received or signal.SIGTERM  # of another process
            message = f"abckd-dns: stopped by {number.name} after step {self.step} of {steps}, which is saved"
            accelerator.print(message + "; the same command continues", file=sys.stderr)
            raise SystemExit(128 + number)


def _accelerator(options: TrainingOptions) -> Accelerator:
    precision = {None: None, "fp32": "no"}.get(options.precision, options.precision)
    if precision == "fp16" and only_cpu():
        raise InputError("--precision fp16: needs a GPU; on a CPU choose bf16 or fp32")
    AcceleratorState._reset_state()  # a run before this one, in the same process, may have had another precision
    return Accelerator(cpu=only_cpu(), mixed_precision=precision, log_with="tensorboard", project_dir=options.out)


def _loader(
    examples: Dataset, options: TrainingOptions, accelerator: Accelerator, first: int, interruption: Interruption
) -> DataLoader:
    return DataLoader(
        examples,
        batch_sampler=_Batches(options, accelerator.process_index, accelerator.num_processes, first),
        num_workers=options.workers,
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=interruption.worker_init,
        generator=torch.Generator(),  # or else starting the workers would draw from the generator of the networks
    )


class _Batches:
    """Indices of the examples of each step from `first` on: the processes take turns, batch by batch."""

    def __init__(self, options: TrainingOptions, process: int, processes: int, first: int) -> None:
        self.size, self.steps, self.process, self.processes = options.batch_size, options.steps, process, processes
        self.first = first

    def __len__(self) -> int:
        return self.steps - self.first

    def __iter__(self) -> Iterator[range]:
        for step in range(self.first, self.steps):
            start = (step * self.processes + self.process) * self.size
            yield range(start, start + self.size)


def _in_any_process(condition: bool, accelerator: Accelerator) -> bool:
    if accelerator.num_processes == 1:
        return condition
    return accelerator.reduce(torch.tensor(float(condition), device=accelerator.device), "sum").item() > 0


def _give_up(
    in_a_row: int, step: int, batch: dict[str, Tensor], accelerator: Accelerator, options: TrainingOptions
) -> None:
    path = options.out / f"offending_batch_{accelerator.process_index}.safetensors"
    batch = {name: value.cpu().contiguous() for name, value in batch.items()}
    write_atomically(path, lambda unfinished: safetensors.torch.save_file(batch, unfinished))
    raise InputError(
        f"{in_a_row} steps in a row had a loss or gradient that is not finite, the last one step {step}, whose batch "
        f"is saved in {path}; try a lower --lr or --clip, or bf16 in place of fp16 (what was saved of the run in "
        f"{options.out} before, if anything, is good)"
    )


class _Means:
    """Means of what a system returned, over steps and processes, without making a GPU wait in between."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps: Tensor | int = 0

    def add(self, outputs: dict[str, Tensor], counts: Tensor) -> None:
        """counts: bool on the device; what does not count is left out."""
        for name, value in outputs.items():
            self._sums[name] = self._sums.get(name, 0) + torch.where(counts, value.detach(), 0)
        self._steps = self._steps + counts

    def take(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """The means since the last call, NaN if no step counted."""
        means = {name: accelerator.reduce(total / self._steps, "mean") for name, total in self._sums.items()}
        self._sums, self._steps = {}, 0
        return means


def _warm_up_then_cosine(step: int, steps: int) -> float:
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
