"""Knowledge-distillation losses: one file or folder per family, functional and nn.Module forms side by side."""

from . import relations
from .abc import ABCLoss, abc_loss
from .afd import AFDLoss, afd_loss
from .attention import ATLoss, at_loss
from .relations import *  # noqa: F403
from .semckd import SemCKDLoss, semckd_loss
from .table import table

__all__ = [
    "ABCLoss",
    "AFDLoss",
    "ATLoss",
    "SemCKDLoss",
    "abc_loss",
    "afd_loss",
    "at_loss",
    "semckd_loss",
    "table",
    *relations.__all__,
]
