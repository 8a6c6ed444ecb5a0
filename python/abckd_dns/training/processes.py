"""The processes that train together, and the devices and precision they train with."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import str_to_bool

from ..errors import InputError


def only_cpu() -> bool:
    """Whether training is on CPUs: there is nothing else, or accelerate was told so."""
    told = str_to_bool(os.environ.get("ACCELERATE_USE_CPU", "false"))
    return bool(told) or not torch.accelerator.is_available()


def processes() -> PartialState:
    """Where this process stands among them. (Left to itself accelerate overlooks other processes on CPUs.)"""
    return PartialState(cpu=only_cpu())


def accelerator_for(precision: str | None, out: Path) -> Accelerator:
    """For networks in fp32, bf16 or fp16, or as accelerate was told; its logs go to `out`. Raises InputError."""
    precision = {None: None, "fp32": "no"}.get(precision, precision)
    if precision == "fp16" and only_cpu():
        raise InputError("--precision fp16: needs a GPU; on a CPU choose bf16 or fp32")
    AcceleratorState._reset_state()  # a run before this one, in the same process, may have had another precision
    return Accelerator(cpu=only_cpu(), mixed_precision=precision, log_with="tensorboard", project_dir=out)


def in_any_process(condition: bool, accelerator: Accelerator) -> bool:
    """Whether `condition` holds in one of them at least. With several of them, a GPU waits here."""
    if accelerator.num_processes == 1:
        return condition
    return accelerator.reduce(torch.tensor(float(condition), device=accelerator.device), "sum").item() > 0
