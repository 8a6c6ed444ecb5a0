"""How networks are named on a command line.

A name is
    teacher, student, gtcrn, dpcrn    a preset of this package, with fresh weights: only where a new network will do
    package.module:factory            what factory(), without arguments, returns
    path                              a checkpoint of a network of this package: a file, or a run's folder
    package.module:factory@path       the factory's network with the weights of a checkpoint
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from .config import PRESETS

RIVALS = ("nsnet2", "gtcrn", "dtln", "dfn3")
"""Public denoisers, as rivals.denoisers.RIVALS has them."""

CHECKPOINT_NAME = "model.safetensors"

_FACTORY = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<function>[A-Za-z_]\w*)(?:@(?P<path>.+))?")


class NetworkName(NamedTuple):
    """What a name says: exactly one of a preset, a factory and a checkpoint, or a factory and a checkpoint."""

    preset: str | None = None
    factory: tuple[str, str] | None = None
    """A module and a function in it."""
    checkpoint: Path | None = None
    """A file that exists."""


def parse_name(name: str, argument: str, *, new: bool = False) -> NetworkName:
    """What `name` says. new: presets count. Raises InputError that blames `argument`."""
    factory = _FACTORY.fullmatch(name)
    if factory is not None:
        path = factory["path"]
        checkpoint = _find_checkpoint(path, argument) if path else None
        return NetworkName(factory=(factory["module"], factory["function"]), checkpoint=checkpoint)
    if new and name in PRESETS:
        return NetworkName(preset=name)
    return NetworkName(checkpoint=_find_checkpoint(name, argument))


def is_foreign(name: str, argument: str) -> bool:
    """Whether a teacher is a public denoiser or an ONNX model. Raises InputError if the model does not exist."""
    if name.endswith(".onnx") and not Path(name).is_file():
        raise InputError(f"{argument}: the model {name} does not exist")
    return name in RIVALS or name.endswith(".onnx")


def _find_checkpoint(name: str, argument: str) -> Path:
    path = Path(name)
    if path.is_dir():
        path = path / CHECKPOINT_NAME
    if not path.is_file():
        trained = f"package.module:factory or a checkpoint (a file, or a folder with {CHECKPOINT_NAME})"
        if name in PRESETS:
            raise InputError(f"{argument}: the preset {name} has not learned anything; expected {trained}")
        raise InputError(f"{argument}: {name} is not {trained}, nor, for a new network, one of {', '.join(PRESETS)}")
    return path
