"""The fused ops, one folder each: the op in __init__.py, its definition in reference.py, GPU kernels in triton.py."""

from .compress import compress
from .pointwise import pointwise
from .project import project
from .tap import Tapped, tap, tap_all

__all__ = ["Tapped", "compress", "pointwise", "project", "tap", "tap_all"]
