"""The fused ops, one folder each: the op in __init__.py, its definition in reference.py, GPU kernels in triton.py."""

from .compress import compress
from .dots import dots
from .gram import gram
from .tap import Tapped, tap, tap_all

__all__ = ["Tapped", "compress", "dots", "gram", "tap", "tap_all"]
