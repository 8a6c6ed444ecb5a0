"""A training run, shared by all commands that train.

A system is a module that maps a batch to a dictionary of scalars, of which "loss" is minimised and all are
logged (and "attention" (n, m) is drawn); its attribute `network` is what is saved. Devices, processes and
precision are those of `accelerate launch`.
"""

from __future__ import annotations

import math
import signal
import sys
from typing import Any

import torch
from accelerate.utils import gather_object, set_seed
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from ..errors import InputError
from ..files import write_json, writing
from ..network.load import save_checkpoint, to_channels_last
from ..network.names import CHECKPOINT_NAME
from ..options import TrainingOptions
from .batches import loader
from .log import DrawAttention, Log
from .processes import accelerator_for, in_any_process
from .runs import CONFIG_NAME, FINISHED_NAME
from .safeguards import Interruption, StepGuard, give_up
from .states import States, learned_state, load_learned_state, random_state, set_random_state


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
        self.options, self.states, self.is_stopped = options, States(options.out), False
        self.accelerator = accelerator = accelerator_for(options.precision, options.out)
        state = self._begun()
        self.step = 0 if state is None else state["step"]
        self.log = Log(options.out, accelerator, self.step + 1, draw_attention)

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
        self.loader = loader(examples, options, accelerator, self.step, self.interruption)
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
                write_json(out / CONFIG_NAME, self.options.model_dump())
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
        self.log.add(outputs, counts=self.guard.judge(norm))
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
            self.is_stopped = in_any_process(self.interruption.received is not None, self.accelerator)
            is_save, is_log, is_read = (x or self.is_stopped for x in (is_save, is_log, is_read))
        if not is_read:
            return
        skipped, in_a_row = self.guard.read()
        if in_a_row >= options.max_skipped:
            give_up(in_a_row, step, batch, options.out, self.accelerator.process_index)
        if is_log:
            loss = self.log.write(step, self.schedule.get_last_lr()[0], skipped)
            progress.set_postfix(loss=f"{loss:.4f}")
        if is_save:
            self.log.draw(step)  # before the state: a run that was killed in between draws it again
            self._save()

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


def _warm_up_then_cosine(step: int, steps: int) -> float:
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
