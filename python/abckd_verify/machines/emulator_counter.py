"""Bytes that CUDA kernels load and store, counted by the emulator, on CPU tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from .emulator import Unavailable, emulated
from .interpreter_counter import NotCounted, Traffic


@dataclass
class EmulatedTraffic(Traffic):
    """Traffic whose accesses are requests of warps: lanes that ask for the same byte at once ask for it once.

    sectors, ideal_sectors: 32-byte sectors that the requests touched, and had to touch for their bytes.
    loaded_by_16: bytes loaded by accesses of 16 bytes.
    """

    sectors: int = 0
    ideal_sectors: int = 0
    loaded_by_16: int = 0


@dataclass
class Counter:
    """Traffic per kernel, filled when the block of `counting` ends."""

    kernels: dict[str, EmulatedTraffic] = field(default_factory=dict)


def load():
    """From now on the ops run the emulated CUDA kernels for CPU tensors under the backend "cpu", in this process.

    Returns the emulator's library for `counting`. Raises NotCounted where there is no emulator.
    """
    try:
        return emulated.load()
    except Unavailable as error:
        raise NotCounted(str(error)) from error


@contextlib.contextmanager
def counting(library) -> Iterator[Counter]:
    """Count what kernels move in this block; `library` comes from `load`."""
    counter = Counter()
    library.reset_counters()
    yield counter
    for name, counts in library.counters().items():
        if counts["launches"]:
            counter.kernels[name] = EmulatedTraffic(
                launches=counts["launches"],
                loaded=counts["load_bytes"],
                stored=counts["store_bytes"],
                unique_loaded=counts["unique_load_bytes"],
                unique_stored=counts["unique_store_bytes"],
                sectors=counts["sectors"],
                ideal_sectors=counts["ideal_sectors"],
                loaded_by_16=counts["load_bytes_by_16"],
            )
