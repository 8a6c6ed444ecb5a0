"""Which examples each step takes, and the loader that makes them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from ..options import TrainingOptions
from .processes import processes
from .safeguards import Interruption


def example_count(options: TrainingOptions) -> int:
    """Examples of the whole run, of all its processes."""
    return options.steps * options.batch_size * processes().num_processes


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
