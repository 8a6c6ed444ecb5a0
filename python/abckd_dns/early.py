"""What can be found wrong with a command before torch is imported, which takes seconds."""

from __future__ import annotations

from pathlib import Path

from .data.sources import check_source
from .errors import InputError
from .files import printable
from .network.names import is_foreign, parse_name
from .options import Options, TrainingOptions
from .training.runs import is_done

_SOURCES = ("clean", "noise", "rirs", "noisy", "test_clean", "test_noise")
_FOLDERS = ("pairs", "prepared", "valid")
_NETWORKS = {"teacher": False, "student": True, "preset": True, "checkpoint": False, "network": True, "init": False}
"""Whether a new one, without weights, will do."""


def has_nothing_to_do(options: Options) -> bool:
    """Whether it is a training run that is finished. Raises InputError if a place or a network does not exist."""
    if isinstance(options, TrainingOptions) and is_done(options):
        return True
    for name in _FOLDERS:
        for place in _as_tuple(getattr(options, name, None)):
            if not place.is_dir():
                raise InputError(f"--{name}: expected a folder, but {printable(place)} is not a folder")
    for name in _SOURCES:
        places = getattr(options, name, None) or ()
        for place in (places,) if isinstance(places, Path) else places:
            check_source(place, f"--{name.replace('_', '-')}")
    for name, new in _NETWORKS.items():
        if name == "teacher" and is_foreign(getattr(options, name, ""), "--teacher"):
            continue
        if getattr(options, name, None) is not None:
            parse_name(str(getattr(options, name)), name if name == "network" else f"--{name}", new=new)
    for name in getattr(options, "checkpoints", ()):
        parse_name(name, "--checkpoints")
    return False


def _as_tuple(places: Path | tuple[Path, ...] | None) -> tuple[Path, ...]:
    return () if places is None else places if isinstance(places, tuple) else (places,)
