"""Fused knowledge-distillation losses over intermediate feature maps."""

from .backends import use_backend
from .cache import TeacherCache, cache_teacher
from .distill import Distiller, DistillerOutput
from .losses import ABCLoss, abc_loss
from .ops import (
    SpectralErrors,
    Tapped,
    compress,
    divergence,
    gram,
    pointwise,
    project,
    spectral,
    tap,
    tap_all,
)

__version__ = "0.1.0"
__all__ = [
    "ABCLoss",
    "Distiller",
    "DistillerOutput",
    "SpectralErrors",
    "Tapped",
    "TeacherCache",
    "abc_loss",
    "cache_teacher",
    "compress",
    "divergence",
    "gram",
    "pointwise",
    "project",
    "spectral",
    "tap",
    "tap_all",
    "use_backend",
]
