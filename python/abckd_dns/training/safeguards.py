"""What keeps a long run alive or ends it well: signals that are waited for, steps that are not taken."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType

import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..files import write_atomically

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """Within `with`, SIGTERM and SIGINT are only noted, in `received`; a second SIGINT acts as ever.

    (Not a second SIGTERM: schedulers and launchers both send one.)
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[int, object] = {}
        self._is_waited_for = torch.zeros((), dtype=torch.bool).share_memory_()

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # no other thread may set handlers
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        self._is_waited_for.fill_(True)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        self._is_waited_for.fill_(False)

    @property
    def worker_init(self) -> Callable[[int], None]:
        """For the processes of a loader: a signal to the whole group must not kill them before the run is saved."""
        return partial(_leave_signals_to_the_main_process, self._is_waited_for)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received == number == signal.SIGINT:
            self.__exit__()
            signal.raise_signal(number)
        self.received = signal.Signals(number)


def _leave_signals_to_the_main_process(is_waited_for: Tensor, worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # At its end the main process terminates the workers that it has left, and waits for them.
    signal.signal(signal.SIGTERM, lambda number, frame: None if is_waited_for else os._exit(0))


class StepGuard:
    """Leaves no trace of a step whose loss or gradient is not finite, without making a GPU wait.

    The decision stays on the device: the optimiser must be a fused one, which reads `found_inf` there. Gradients are
    those of all processes, hence so is the decision.
    """

    def __init__(self, system: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        # Batch normalisation takes in a batch before anyone knows that its loss is NaN.
        self._buffers = [buffer for module in system.modules() if module.training for buffer in module.buffers(False)]
        self._before = [buffer.clone() for buffer in self._buffers]
        self._optimizer = optimizer
        self._counts = torch.zeros(2, dtype=torch.int64, device=device)  # skipped in all, skipped in a row

    def before_step(self) -> None:
        for before, buffer in zip(self._before, self._buffers, strict=True):
            before.copy_(buffer)

    @staticmethod
    def spread(loss: Tensor) -> Tensor:
        """`loss`, with NaN for every gradient where it is not finite: then every process learns of it."""
        return loss * (1 + 0 * loss.detach())

    def judge(self, gradient_norm: Tensor) -> Tensor:
        """Whether the step counts, a bool on the device; otherwise `optimizer.step` will do nothing."""
        good = gradient_norm.isfinite()
        for before, buffer in zip(self._before, self._buffers, strict=True):
            buffer.copy_(torch.where(good, buffer, before))
        self._optimizer.grad_scale, self._optimizer.found_inf = None, (~good).to(torch.float32)
        skipped, in_a_row = self._counts.unbind()
        self._counts = torch.stack([skipped + ~good, torch.where(good, 0, in_a_row + 1)])
        return good

    def read(self) -> tuple[int, int]:
        """Steps skipped in all, and in a row up to the last one. A GPU waits here."""
        return tuple(self._counts.tolist())

    def resume(self, skipped: int, in_a_row: int) -> None:
        self._counts.copy_(torch.tensor([skipped, in_a_row]))


def give_up(in_a_row: int, step: int, batch: dict[str, Tensor], out: Path, process: int) -> None:
    """Save the batch of the last of so many steps that were skipped in a row, and raise InputError."""
    path = out / f"offending_batch_{process}.safetensors"
    batch = {name: value.cpu().contiguous() for name, value in batch.items()}
    write_atomically(path, lambda unfinished: safetensors.torch.save_file(batch, unfinished))
    raise InputError(
        f"{in_a_row} steps in a row had a loss or gradient that is not finite, the last one step {step}, whose batch "
        f"is saved in {path}; try a lower --lr or --clip, or bf16 in place of fp16 (what was saved of the run in "
        f"{out} before, if anything, is good)"
    )
