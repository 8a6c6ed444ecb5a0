"""Checks of arguments that several losses take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor

from ...ops.shapes import describe

T = TypeVar("T")


def check_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError, naming the argument, unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{argument}: expected one of {', '.join(map(repr, choices))}, got {describe(value)}")


def check_number(
    argument: str, value: float, *, least: float, most: float = math.inf, above: bool = False, whole: bool = False
) -> float:
    """`value`. Raises ValueError unless it is a finite number from `least` (`above`: above it) to `most`.

    whole   an int that is no bool.
    """
    kind = _is_whole(value) if whole else isinstance(value, int | float)
    if not kind or not math.isfinite(value) or not least <= value <= most or (above and value == least):
        raise ValueError(f"{argument}: expected {_numbers(least, most, above, whole)}, got {describe(value)}")
    return value


def _numbers(least: float, most: float, above: bool, whole: bool) -> str:
    """What check_number allows, in words."""
    number = "whole number" if whole else "number"
    if (least == 0 and above) or (least == 1 and whole):
        limits = f"a positive {number}"
    elif least == -math.inf:
        limits = f"a finite {number}"
    else:
        limits = f"a {number} {'above' if above else 'at least'} {least:g}"
    return limits if most == math.inf else f"{limits} and at most {most:g}"


def listed(argument: str, given: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    """The list given, or of the one tensor given. Raises TypeError, naming the argument, for anything else."""
    if isinstance(given, Tensor):
        return [given]
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise TypeError(f"{argument}: expected a tensor or a non-empty list of tensors, got {describe(given)}")
    return given


def check_weights(weights, n: int | None) -> Tensor | list[float] | None:
    """`weights`: None, a tensor (n,), or n numbers, as floats; n None: any number of them. Raises ValueError."""
    if weights is None:
        return None
    expected = f"{'some' if n is None else n} numbers, one per layer"
    if isinstance(weights, Tensor):
        if weights.dim() != 1 or n not in (None, len(weights)):
            raise ValueError(f"weights: expected {expected}, got shape {tuple(weights.shape)}")
        return weights
    try:
        numbers = [float(w) for w in weights]
    except (TypeError, ValueError) as error:
        raise ValueError(f"weights: expected {expected}, got {describe(weights)}") from error
    if n not in (None, len(numbers)):
        raise ValueError(f"weights: expected {expected}, got shape {(len(numbers),)}")
    return numbers


def both_or_neither(what: str, student: T | None, teacher: T | None) -> tuple[T, T] | None:
    """What a module was told of both networks, `student_<what>` and `teacher_<what>`; None if nothing of either.

    Raises ValueError, naming the teacher's, if it was told of one of them.
    """
    if student is None and teacher is None:
        return None
    if student is None or teacher is None:
        raise ValueError(f"teacher_{what}: expected numbers exactly if student_{what} has some")
    return student, teacher


def check_count(argument: str, value: int) -> None:
    """Raise ValueError, naming the argument, unless `value` is a positive whole number."""
    check_number(argument, value, least=1, whole=True)


def check_channels(argument: str, channels: Sequence[int]) -> list[int]:
    """`channels`, one number per layer, as a list. Raises ValueError that names the argument."""
    if not isinstance(channels, Sequence) or not channels or any(not _is_whole(x) or x < 1 for x in channels):
        raise ValueError(f"{argument}: expected a non-empty list of positive whole numbers, got {describe(channels)}")
    return list(channels)


def check_layer_count(argument: str, count: int, channels: list[int]) -> None:
    """Raise ValueError unless there are as many layers as channels were announced."""
    if count != len(channels):
        side = argument.partition("_")[0]
        raise ValueError(f"{argument}: expected {len(channels)} layers as in {side}_channels, got {count}")


def check_layer_channels(argument: str, features: Sequence[Tensor], channels: list[int]) -> None:
    """Raise ValueError unless the features, or their channel means, have the channels that were announced."""
    for index, (x, expected) in enumerate(zip(features, channels, strict=True)):
        if x.shape[1] != expected:
            raise ValueError(f"{argument}[{index}]: expected {expected} channels, got {x.shape[1]}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
