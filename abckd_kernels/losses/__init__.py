"""Knowledge-distillation losses: one file or folder per family, functional and nn.Module forms side by side."""

from . import relations
from .abc import ABCLoss, abc_loss
from .relations import *  # noqa: F403

__all__ = ["ABCLoss", "abc_loss", *relations.__all__]
