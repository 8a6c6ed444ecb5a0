"""The fused ops, one folder each: the op in __init__.py, its definition in reference.py, GPU kernels in triton.py."""

from .compress import compress
from .correlation import Distances, correlation
from .divergence import divergence
from .dots import dots
from .gram import gram
from .pointwise import pointwise
from .project import project
from .pyramid import pyramid
from .spectral import SpectralErrors, spectral
from .tap import Tapped, tap, tap_all

__all__ = [
    "Distances",
    "SpectralErrors",
    "Tapped",
    "compress",
    "correlation",
    "divergence",
    "dots",
    "gram",
    "pointwise",
    "project",
    "pyramid",
    "spectral",
    "tap",
    "tap_all",
]
