"""The training loop, shared by all systems, and the command `train`.

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
from typing import Literal

import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object, set_seed
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .checkpoints import (
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
from .data import MixtureOptions, Mixtures
from .errors import InputError, check_at_least, check_positive
from .networks import CHECKPOINT_NAME, load_network, save_checkpoint
from .objective import SpeechLoss
from .prepared import Prepared
from .processes import only_cpu, processes
from .safeguards import Interruption, StepGuard
from .stft import SAMPLE_RATE


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


@dataclass(kw_only=True)
class TrainOptions(TrainingOptions):
    """Train a network on mixtures of clean speech and noise."""

    preset: str = "teacher"
    """teacher, student, or package.module:factory for a network of your own."""


def train(options: TrainOptions) -> None:
    if is_done(options):
        return
    set_seed(options.seed)
    network = load_network(options.preset, "--preset", new=True)
    fit(Supervised(network), labelled_examples(options), options)


def is_done(options: TrainingOptions) -> bool:
    """Whether the run in --out has nothing left to do, which is printed. Raises InputError if it is another run."""
    if not has_begun(options.out):
        return False
    check_same_run(options.out, asdict(options))
    if is_finished(options.out):
        processes().print(f"{options.out} is finished: {options.steps} steps are done")
    return is_finished(options.out)


def labelled_examples(options: TrainingOptions) -> Dataset:
    if options.prepared is None:
        return Mixtures(options, options.segment_length, options.example_count, options.seed)
    for argument in ("clean", "noise", "rirs"):
        if getattr(options, argument) is not None:
            raise InputError(f"--{argument}: {options.prepared} (--prepared) is mixed already; leave one of them out")
    return Prepared(options.prepared, options.segment_length, options.example_count, options.seed)


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
    """Train `system` for `options.steps` steps, from where the run in `options.out` stands, and leave it there.

    Raises InputError, and SystemExit after a state was saved because of SIGTERM or SIGINT.
    """
    with writing(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    accelerator = _accelerator(options)
    device = accelerator.device
    states = States(options.out)
    state = states.newest()
    if state is None:
        if accelerator.is_main_process:
            write_json(options.out / CONFIG_NAME, asdict(options))
    elif state["processes"] != accelerator.num_processes:
        raise InputError(
            f"--out: {options.out} holds a run of {state['processes']} processes, which {accelerator.num_processes} "
            "cannot continue; start as many, or choose another folder"
        )
    first = 0 if state is None else state["step"]
    accelerator.init_trackers("log", init_kwargs={"tensorboard": {"purge_step": first + 1}})

    system.train()
    if accelerator.mixed_precision != "no":
        system.to(memory_format=torch.channels_last)  # what tensor cores and AMX convolve; only for 4-D features
    # Fused: it can be told to leave a step out without the CPU knowing (StepGuard).
    optimizer = adam = torch.optim.AdamW([p for p in system.parameters() if p.requires_grad], lr=options.lr, fused=True)
    # Not given to accelerate: it would step the schedule once per process.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_up_then_cosine(step, options.steps))
    if state is not None:
        load_learned_state(system, state["learned"], options.out)
        schedule.load_state_dict(state["schedule"])
        adam.load_state_dict(state["optimizer"])
    interruption = Interruption()
    loader = _loader(examples, options, accelerator, first, interruption)
    system, optimizer = accelerator.prepare(system, optimizer)
    guard = StepGuard(accelerator.unwrap_model(system), adam, device)
    set_seed(options.seed, device_specific=True)  # processes share weights and must not share dropout
    if state is not None:
        guard.resume(*state["skipped"])
        set_random_state(state["random"][accelerator.process_index], device)
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
        accelerator.print(f"{options.out} continues after step {first}")

    def save(step: int) -> None:
        randoms = gather_object([random_state(device)])
        if not accelerator.is_main_process:
            return
        trained = accelerator.unwrap_model(system)
        states.save(
            step,
            {
                "step": step,
                "processes": accelerator.num_processes,
                "learned": learned_state(trained),
                "optimizer": adam.state_dict(),
                "schedule": schedule.state_dict(),
                "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
                "skipped": guard.read(),
                "random": randoms,
            },
        )
        save_checkpoint(options.out / CHECKPOINT_NAME, trained.network)

    step, is_stop = first, False  # killed after its last state was saved, a run has no step left
    means = _Means()
    progress = tqdm(
        loader,
        desc=options.out.name,
        unit="step",
        initial=first,
        total=options.steps,
        disable=not accelerator.is_local_main_process,
    )
    with interruption:
        for step, batch in enumerate(progress, start=first + 1):
            batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
            guard.before_step()
            outputs = system(batch)
            accelerator.backward(guard.spread(outputs["loss"]))
            norm = accelerator.clip_grad_norm_(system.parameters(), options.clip)
            means.add(outputs, counts=guard.judge(norm))
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

            is_save = step % options.save_every == 0 or step == options.steps
            is_log = step % options.log_every == 0 or is_save
            is_read = is_log or step % options.max_skipped == 0  # reading a value makes a GPU wait
            if is_read or accelerator.num_processes == 1:
                is_stop = _in_any_process(interruption.received is not None, accelerator)
                is_save, is_log, is_read = is_save or is_stop, is_log or is_stop, is_read or is_stop
            if not is_read:
                continue
            skipped, in_a_row = guard.read()
            if in_a_row >= options.max_skipped:
                _give_up(in_a_row, step, batch, accelerator, options)
            if is_log:
                logged = means.take(accelerator)
                attention = logged.pop("attention", None)
                scalars = {name: value.item() for name, value in logged.items()}
                progress.set_postfix(loss=f"{scalars['loss']:.4f}")
                with writing(options.out):
                    accelerator.log({**scalars, "lr": schedule.get_last_lr()[0], "skipped": skipped}, step=step)
            if is_save:
                # Before the state: a run that was killed in between draws it again.
                if draw_attention is not None and attention is not None and accelerator.is_main_process:
                    with writing(options.out):
                        figure = draw_attention(attention)
                        figure.savefig(options.out / "attention.png", dpi=150)
                        accelerator.get_tracker("tensorboard", unwrap=True).add_figure("attention", figure, step)
                save(step)
            if is_stop:
                break
    if step == options.steps and accelerator.is_main_process:
        write_json(options.out / FINISHED_NAME, {"steps": options.steps, "skipped": guard.read()[0]})
        states.remove()
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if is_stop:
        number = interruption.received or signal.SIGTERM  # of another process
        message = f"abckd-dns: stopped by {number.name} after step {step} of {options.steps}, which is saved"
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
