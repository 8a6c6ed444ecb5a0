"""Knowledge-distillation losses: one file or folder per family, functional and nn.Module forms side by side."""

from . import hints, relations, response
from .abc import ABCLoss, abc_loss
from .afd import AFDLoss, afd_loss
from .attention import ATLoss, at_loss
from .building import build
from .entries import table
from .hints import *  # noqa: F403
from .relations import *  # noqa: F403
from .response import *  # noqa: F403
from .semckd import SemCKDLoss, semckd_loss

__all__ = [
    "ABCLoss",
    "AFDLoss",
    "ATLoss",
    "SemCKDLoss",
    "abc_loss",
    "afd_loss",
    "at_loss",
    "build",
    "semckd_loss",
    "table",
    *hints.__all__,
    *relations.__all__,
    *response.__all__,
]
