"""Which examples each step takes, and the loader that makes them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import worker_errors
from ..options import TrainingOptions
from .processes import processes
from .safeguards import Interruption


def example_count(options: TrainingOptions) -> int:
    """Examples of the whole run, of all its processes."""
    return options.steps * options.accumulate * options.batch_size * processes().num_processes


def loader(
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


def steps_of(loader: DataLoader, accumulate: int) -> Iterator[list[dict[str, Tensor]]]:
    """The batches of each step. Raises InputError if a worker process ends."""
    with worker_errors():
        batches = iter(loader)
    while True:
        with worker_errors():
            step = list(islice(batches, accumulate))
        if not step:
            return
        yield step


class _Batches:
    """Indices of the examples of each batch from that of step `first` on: the processes take turns, batch by batch."""

    def __init__(self, options: TrainingOptions, process: int, processes: int, first: int) -> None:
        self.size, self.process, self.processes = options.batch_size, process, processes
        self.batches = range(first * options.accumulate, options.steps * options.accumulate)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[range]:
        for batch in self.batches:
            start = (batch * self.processes + self.process) * self.size
            yield range(start, start + self.size)
