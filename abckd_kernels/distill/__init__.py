"""Distiller: losses between named layers of a student and its teachers, in any training loop."""

from .distiller import Distiller, DistillerOutput
from .hooks import Observed
from .layers import Layer
from .teachers import Reader, Source, Teacher
from .terms import Term
from .wanted import Taken, Wanted, wanted_of

__all__ = [
    "Distiller",
    "DistillerOutput",
    "Layer",
    "Observed",
    "Reader",
    "Source",
    "Taken",
    "Teacher",
    "Term",
    "Wanted",
    "wanted_of",
]
