"""Knowledge-distillation losses: one file per family, functional and nn.Module forms side by side."""

from .abc import ABCLoss, abc_loss

__all__ = ["ABCLoss", "abc_loss"]
