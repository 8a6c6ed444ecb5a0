"""The processes that train together."""

import os

import torch
from accelerate import PartialState
from accelerate.utils import str_to_bool


def only_cpu() -> bool:
    """Whether training is on CPUs: there is nothing else, or accelerate was told so."""
    told = str_to_bool(os.environ.get("ACCELERATE_USE_CPU", "false"))
    return bool(told) or not torch.accelerator.is_available()


def processes() -> PartialState:
    """Where this process stands among them. (Left to itself accelerate overlooks other processes on CPUs.)"""
    return PartialState(cpu=only_cpu())
