"""Audio: files, places that hold them, and the examples that are made of them."""

from importlib import import_module
from typing import Any

_HOMES = {"MixtureOptions": "..options", "Mixtures": ".mixtures"}


def __getattr__(name: str) -> Any:
    """What your own code needs, imported when it is asked for: the commands start without torch."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
