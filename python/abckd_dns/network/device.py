"""The device that a network runs on."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def best_device() -> torch.device:
    """An accelerator, where there is one."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def describe_device() -> str:
    """`best_device` in words."""
    device = best_device()
    return f"CPU, threads: {torch.get_num_threads()}" if device.type == "cpu" else str(device)


def processor_name() -> str:
    """Of the CPU, where the system tells; else what it is called in general."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@contextmanager
def one_thread() -> Iterator[None]:
    """Within `with`, torch computes on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
