"""Checks of arguments that several losses take."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def check_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError, naming the argument, unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{argument}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def check_number(argument: str, value: float, *, least: float, most: float = math.inf, above: bool = False) -> float:
    """`value`. Raises ValueError unless it is a finite number from `least` (`above`: above it) to `most`."""
    fits = isinstance(value, int | float) and math.isfinite(value) and least <= value <= most
    if not fits or (above and value == least):
        limits = f"{'above' if above else 'at least'} {least:g}" + (f" and at most {most:g}" if most < math.inf else "")
        raise ValueError(f"{argument}: expected a number {limits}, got {value!r}")
    return value


def check_weights(weights, n: int) -> Tensor | None:
    """`weights` as a tensor of n numbers, or None. Raises ValueError."""
    if weights is None:
        return None
    if not isinstance(weights, Tensor):
        try:
            weights = torch.tensor(weights, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"weights: expected {n} numbers, one per student layer, got {weights!r}") from error
    if weights.shape != (n,):
        raise ValueError(f"weights: expected {n} numbers, one per student layer, got shape {tuple(weights.shape)}")
    return weights
