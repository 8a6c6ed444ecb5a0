"""Checks of arguments that several losses take."""

from __future__ import annotations

import torch
from torch import Tensor


def check_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError, naming the argument, unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{argument}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


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
