"""Options of losses: what values one has stands in the annotation of its function, and is checked from there.

`convention: Literal["paper", "published"]` or `temperature: Positive` in a signature is what `check_options` holds the
values to: in the function when it runs, in its module when it is made. What compiled code is given is not checked
again: the ops check what they compute with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import torch

from ...ops.shapes import describe
from .checks import check_choice, check_number


class Limits(NamedTuple):
    """Numbers from `least` (`above`: above it) to `most`, finite; `whole` ones alone."""

    least: float = 0.0
    most: float = math.inf
    above: bool = False
    whole: bool = False


Positive = Annotated[float, Limits(above=True)]
NotNegative = Annotated[float, Limits()]
Finite = Annotated[float, Limits(-math.inf)]
Share = Annotated[float, Limits(most=1.0)]
Count = Annotated[int, Limits(1, whole=True)]
Convention = Literal["paper", "published"]


def check_options(function: Callable, **options) -> None:
    """Raise ValueError or TypeError, naming the option, for values that the function's annotations don't allow."""
    if torch.compiler.is_compiling():
        return
    limits = _limits(function)
    for name, value in options.items():
        if name not in limits or (value is None and None in limits[name]):
            continue
        for allowed in limits[name]:
            if allowed is bool and not isinstance(value, bool):
                raise TypeError(f"{name}: expected True or False, got {describe(value)}")
            if isinstance(allowed, Limits):
                check_number(name, value, **allowed._asdict())
        choices = tuple(x for x in limits[name] if isinstance(x, str))
        if choices:
            check_choice(name, value, choices)


@cache
def _limits(function: Callable) -> dict[str, tuple]:
    """By name of an option: its choices, Limits, None where it may be; nothing of those that are not annotated so."""
    hints = get_type_hints(function, include_extras=True)
    found = {name: tuple(_allowed(hint)) for name, hint in hints.items() if name != "return"}
    return {name: allowed for name, allowed in found.items() if any(x is not None for x in allowed)}


def _allowed(hint: Any) -> list:
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if get_origin(hint) is Annotated:
        return [x for x in get_args(hint)[1:] if isinstance(x, Limits)]
    if hint is bool:
        return [bool]
    if hint is type(None):
        return [None]
    arguments = get_args(hint)
    if type(None) in arguments:  # Positive | None, Literal[...] | None
        return [x for argument in arguments for x in _allowed(argument)]
    return []
