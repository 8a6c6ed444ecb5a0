"""pointwise in plain PyTorch: the definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..shapes import accumulation_dtype, broadcast_mask, dense, empty_like


class Function(NamedTuple):
    """f(s, t, third, per_channel, parameter), and the tuple (df/ds,) or (df/ds, df/dthird) of the same arguments."""

    value: Callable[..., Tensor]
    slopes: Callable[..., tuple[Tensor, ...]]


def _power_slopes(s, t, third, per_channel, x):
    d = s - t
    return (torch.where(d == 0, 0, x * d.abs() ** (x - 1) * d.sign()),)


def _rectified(s, t, third, per_channel, x):
    return (s.relu() - t).square()


def _rectified_slopes(s, t, third, per_channel, x):
    return (torch.where(s <= 0, 0, 2 * (s - t)),)


def _boundary(s, t, third, per_channel, x):
    return torch.where(t > 0, x - s, s + x).relu().square()


def _boundary_slopes(s, t, third, per_channel, x):
    return (torch.where(t > 0, -2 * (x - s).relu(), 2 * (s + x).relu()),)


def _margin_distance(s, t, third, per_channel, x):
    target = torch.maximum(t, per_channel)
    return torch.where((t > 0) | ~(s <= target), s - target, 0)  # ~(<=): what is not a number counts, and shows


def _variance(third, x):
    # Nothing is left of the distance's share at exp(-80); beyond exp(88) its derivative would be infinite / infinite.
    exponential = third.clamp(max=80).exp()
    return exponential, 1 / (x + exponential)


def _heteroscedastic(s, t, third, per_channel, x):
    return (t - s).square() * _variance(third, x)[1] + third


def _heteroscedastic_slopes(s, t, third, per_channel, x):
    exponential, inverse = _variance(third, x)
    return 2 * (s - t) * inverse, 1 - (t - s).square() * inverse * (exponential * inverse)


FUNCTIONS = {
    "squared": Function(lambda s, t, *_: (s - t).square(), lambda s, t, *_: (2 * (s - t),)),
    "power": Function(lambda s, t, third, per_channel, x: (s - t).abs() ** x, _power_slopes),
    "rectified": Function(_rectified, _rectified_slopes),
    "boundary": Function(_boundary, _boundary_slopes),
    "margin": Function(lambda *args: _margin_distance(*args).square(), lambda *args: (2 * _margin_distance(*args),)),
    "heteroscedastic": Function(_heteroscedastic, _heteroscedastic_slopes),
}


def forward(
    student: Tensor,
    teacher: Tensor,
    third: Tensor | None,
    per_channel: Tensor | None,
    kind: str,
    parameter: float,
    lengths: Tensor | None,
    padded_length: int,
) -> Tensor:
    values = FUNCTIONS[kind].value(*_wide(student, teacher, third, per_channel), parameter)
    mask = broadcast_mask(student, lengths, padded_length)
    if mask is not None:
        values = values.masked_fill(~mask, 0)
    return values.flatten(2).sum(2)


def backward(
    grad: Tensor,
    student: Tensor,
    teacher: Tensor,
    third: Tensor | None,
    per_channel: Tensor | None,
    kind: str,
    parameter: float,
    lengths: Tensor | None,
    padded_length: int,
) -> tuple[Tensor, Tensor]:
    operands = _wide(student, teacher, third, per_channel)
    grad = grad.to(operands[0].dtype).view(*grad.shape, *[1] * (student.dim() - 2))
    mask = broadcast_mask(student, lengths, padded_length)
    results = []
    for slope in FUNCTIONS[kind].slopes(*operands, parameter):
        slope = grad * slope
        if mask is not None:
            slope = slope.masked_fill(~mask, 0)
        results.append(empty_like(dense(student)).copy_(slope))
    return results[0], results[1] if len(results) > 1 else student.new_empty(0)


def _wide(
    student: Tensor, teacher: Tensor, third: Tensor | None, per_channel: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    dtype = accumulation_dtype(student.dtype)
    if per_channel is not None:
        per_channel = per_channel.to(dtype).view(-1, *[1] * (student.dim() - 2))
    return student.to(dtype), teacher.to(dtype), None if third is None else third.to(dtype), per_channel
