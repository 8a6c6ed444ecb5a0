"""Knowledge-distillation losses: one file or folder per family, functional and nn.Module forms side by side."""

from . import relations, response
from .abc import ABCLoss, abc_loss
from .relations import *  # noqa: F403
from .response import *  # noqa: F403
from .table import table

__all__ = ["ABCLoss", "abc_loss", "table", *relations.__all__, *response.__all__]
