"""A training run, shared by all commands that train.

A system is a module that maps a batch to a dictionary of scalars, of which "loss" is minimised and all are
logged (and "attention" (n, m) is drawn); its attribute `network` is what is saved. Devices, processes and
precision are those of `accelerate launch`.
"""

from __future__ import annotations

import math
import signal
import sys
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data.examples import inventory
from ..errors import InputError
from ..files import write_json, writing
from ..network.load import save_checkpoint, to_channels_last
from ..network.names import CHECKPOINT_NAME
from ..options import TrainingOptions
from .averaging import Average
from .batches import loader, steps_of
from .log import DrawAttention, Log, Progress, closing_words
from .processes import accelerator_for, in_any_process
from .runs import BEST_NAME, CONFIG_NAME, FINISHED_NAME, check_same_data, is_finished
from .safeguards import Interruption, StepGuard, give_up
from .states import States, learned_state, load_learned_state, random_state, set_random_state
from .validation import Validation


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
        self.options, self.states, self.is_stopped, self.is_early = options, States(options.out), False, False
        self.accelerator = accelerator = accelerator_for(options.precision, options.out)
        self.validation = Validation(options) if options.valid is not None else None
        self.best: dict[str, Any] = {}
        self.inventory = inventory(examples)
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
            for group in self.adam.param_groups:  # of a run that is to take more steps than before, another one
                group["lr"] = options.lr * _warm_up_then_cosine(self.step, options.steps)
        self.interruption = Interruption()
        self.loader = loader(examples, options, accelerator, self.step, self.interruption)
        if options.compile:
            system.compile()
        self.system, self.optimizer = accelerator.prepare(system, self.adam)
        self.guard = StepGuard(self._trained, self.adam, accelerator.device)
        self.average = Average(self._trained.network, options.ema)
        set_seed(options.seed, device_specific=True)  # processes share weights and must not share dropout
        if state is not None:
            self.guard.resume(*state["skipped"])
            self.average.load(state["average"])
            self.best = state["best"]
            set_random_state(state["random"][accelerator.process_index], accelerator.device)
            if accelerator.scaler is not None:
                accelerator.scaler.load_state_dict(state["scaler"])
            accelerator.print(f"{options.out} continues after step {self.step}")

    def _begun(self) -> dict[str, Any] | None:
        """The state to go on from; the run's configuration is written."""
        options, count = self.options, self.accelerator.num_processes
        out = options.out
        state = self.states.newest()
        if state is not None:
            if state["processes"] != count:
                raise InputError(
                    f"--out: {out} holds a run of {state['processes']} processes, which {count} cannot continue; start "
                    "as many, or choose another folder"
                )
            if "data" not in state:
                raise InputError(f"--out: the state in {out} was saved by an older version; choose another folder")
            check_same_data(state["data"], self.inventory, out)
            if is_finished(out) and state["best"]:  # it is to take more steps, and may be patient anew
                state["best"]["since"] = 0
        if self.accelerator.is_main_process:
            write_json(out / CONFIG_NAME, options.model_dump())
            (out / FINISHED_NAME).unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()
        return state

    @property
    def _trained(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.system)

    def go_on(self) -> None:
        """Take the steps that are left, or those until a signal comes or patience ends."""
        progress = Progress(self.options, self.step, self.accelerator)
        with self.interruption, progress:
            for batches in steps_of(self.loader, self.options.accumulate):
                batches = [
                    {name: x.to(self.accelerator.device, non_blocking=True) for name, x in batch.items()}
                    for batch in batches
                ]
                self._learn(batches)
                self.step += 1
                progress.advance()
                self._log_and_save(batches[-1], progress)
                if self.is_stopped or self.is_early:
                    break

    def _learn(self, batches: list[dict[str, Tensor]]) -> None:
        self.guard.before_step()
        found = []
        for number, batch in enumerate(batches, start=1):
            # The gradients of all processes are gathered with those of the last batch.
            with self.accelerator.no_sync(self.system) if number < len(batches) else nullcontext():
                outputs = self.system(batch)
                self.accelerator.backward(self.guard.spread(outputs["loss"]) / len(batches))
            found.append(outputs)
        norm = self.accelerator.clip_grad_norm_(self.system.parameters(), self.options.clip)
        counts = self.guard.judge(norm)
        for outputs in found:
            self.log.add(outputs, counts=counts)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.average.update(self.step + 1)

    def _log_and_save(self, batch: dict[str, Tensor], progress: Progress) -> None:
        """Stop, log, measure and save, where it is time for that."""
        options, step = self.options, self.step
        is_last = step == options.steps
        is_measured = self.validation is not None and (step % options.valid_every == 0 or is_last)
        is_save = step % options.save_every == 0 or is_last
        is_log = step % options.log_every == 0 or is_save or is_measured
        is_read = is_log or step % options.max_skipped == 0  # reading a value makes a GPU wait
        if is_read or self.accelerator.num_processes == 1:
            self.is_stopped = in_any_process(self.interruption.received is not None, self.accelerator)
            is_save, is_log, is_read = (x or self.is_stopped for x in (is_save, is_log, is_read))
        if not is_read:
            return
        skipped, in_a_row = self.guard.read()
        if in_a_row >= options.max_skipped:
            give_up(in_a_row, step, batch, options.out, self.accelerator.process_index)
        values: dict[str, float] = {}
        if is_log:
            values["loss"] = self.log.write(step, self.schedule.get_last_lr()[0], skipped)
        if is_measured:
            measured = self._measure()
            values |= {f"valid {name}": value for name, value in measured.items()}
            self.is_early = not is_last and bool(options.patience) and self.best["since"] >= options.patience
            is_save = is_save or self.is_early
        if values:
            progress.show(values)
        if is_save:
            self.log.draw(step)  # before the state: a run that was killed in between draws it again
            self._save()

    def _measure(self) -> dict[str, float]:
        """On --valid, in the first process; all learn of it. A better network is saved."""
        accelerator, told = self.accelerator, [None]
        if accelerator.is_main_process:
            with self.average.applied():
                values = self.validation.measure(self._trained.network)
                if self.validation.is_better(values, self.best.get("value")):
                    self.best = {"value": values[self.options.best_by], "step": self.step, "since": 0, "values": values}
                    save_checkpoint(self.options.out / BEST_NAME, self._trained.network)
                else:
                    self.best["since"] = self.best.get("since", 0) + 1
            told = [(values, self.best)]
        ((values, self.best),) = broadcast_object_list(told)
        self.log.write_values({f"valid/{name}": value for name, value in values.items()}, self.step)
        return values

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
                "average": self.average.state(),
                "best": self.best,
                "data": self.inventory,
            },
        )
        with self.average.applied():
            save_checkpoint(self.options.out / CHECKPOINT_NAME, self._trained.network)

    def end(self) -> None:
        """Finish the run if all steps are done. Raises SystemExit if a signal stopped it."""
        out, steps, accelerator = self.options.out, self.options.steps, self.accelerator
        is_complete = self.step == steps or self.is_early
        if is_complete and accelerator.is_main_process:
            content = {"steps": self.step, "skipped": self.guard.read()[0]}
            write_json(out / FINISHED_NAME, {**content, **({"best": self.best} if self.best else {})})
            self.states.keep_last()
        accelerator.wait_for_everyone()
        accelerator.end_training()
        if is_complete:
            accelerator.print(closing_words(self.options, self.step, self.best))
        elif self.is_stopped:
            number = self.interruption.received or signal.SIGTERM  # of another process
            message = f"abckd-dns: stopped by {number.name} after step {self.step} of {steps}, which is saved"
            accelerator.print(message + "; the same command continues", file=sys.stderr)
            raise SystemExit(128 + number)


def _warm_up_then_cosine(step: int, steps: int) -> float:
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
