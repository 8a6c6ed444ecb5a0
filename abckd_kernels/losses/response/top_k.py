"""A teacher's likeliest classes in place of all its logits: k values and indices per row, and what the others weigh.

With them KL and Jensen-Shannon divergence compare k + 1 classes: the likeliest ones, and all others as one. Its logit
is rest = temperature log sum_others exp(x / temperature). Without `rest` the others can't occur: the teacher's
probabilities are those of a softmax over k classes, as where only values and indices were kept.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...ops.shapes import FEATURE_DTYPES, describe
from ..common.arithmetic import wide
from ..common.checks import check_count, check_number


class TopK(NamedTuple):
    """Logits of the k likeliest classes, (B, ..., k, ...) with k along the classes' axis.

    values    logits.
    indices   their classes, integers of the same shape, each class once.
    rest      the logit of all others together, k replaced by 1, at the temperature of the loss; None: they can't occur.
    """

    values: Tensor
    indices: Tensor
    rest: Tensor | None = None


def top_k(logits: Tensor, k: int, *, dim: int = 1, temperature: float | None = None) -> TopK:
    """The k likeliest classes of logits.

    logits        as for the losses on logits.
    k             at most the classes.
    dim           the axis of the classes.
    temperature   of the loss to come: makes `rest`. It is good for no other temperature.

    Raises TypeError or ValueError that names the argument.
    """
    if not isinstance(logits, Tensor) or logits.dtype not in FEATURE_DTYPES:
        raise TypeError(f"logits: expected a floating-point tensor, got {describe(logits)}")
    if not isinstance(dim, int) or not -logits.dim() <= dim < logits.dim():
        raise ValueError(f"dim: expected an axis of the logits {tuple(logits.shape)}, got {describe(dim)}")
    check_count("k", k)
    if k > logits.shape[dim]:
        raise ValueError(f"k: expected at most the {logits.shape[dim]} classes of {tuple(logits.shape)}, got {k}")
    values, indices = logits.topk(k, dim)
    if temperature is None:
        return TopK(values, indices)
    check_number("temperature", temperature, least=0, above=True)
    return TopK(values, indices, _together(wide(logits), indices, dim, temperature))


def check_top_k(name: str, teacher: TopK, student: Tensor, dim: int) -> None:
    """Raise TypeError or ValueError, naming the argument, unless these are classes of the student's logits."""
    shape = list(student.shape)
    for part, x in zip(teacher._fields, teacher, strict=True):
        if x is None and part == "rest":
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}.{part}: expected a tensor, got {describe(x)}")
        whole = x.dtype in (torch.int64, torch.int32)
        if whole != (part == "indices") or (not whole and x.dtype not in FEATURE_DTYPES):
            kind = "int64 or int32" if part == "indices" else "floating-point"
            raise TypeError(f"{name}.{part}: expected a {kind} tensor, got {describe(x)}")
        if x.dim() == len(shape):
            shape[dim] = 1 if part == "rest" else min(max(teacher.values.shape[dim], 1), student.shape[dim])
        if list(x.shape) != shape or x.device != student.device:
            expected = f"shape {tuple(shape)} on {student.device}"
            raise ValueError(f"{name}.{part}: expected {expected}, got {describe(x)}")
    if torch.compiler.is_compiling() or student.device.type != "cpu":  # elsewhere a look at values waits for the device
        return
    indices = teacher.indices
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < student.shape[dim]:
        raise ValueError(
            f"{name}.indices: expected classes from 0 to {student.shape[dim] - 1} of {tuple(student.shape)}, got "
            f"{int(indices.min())} to {int(indices.max())}"
        )


def lacks_classes(teacher: TopK, student: Tensor, dim: int) -> bool:
    """Whether the student may choose what the teacher can't."""
    return teacher.rest is None and teacher.values.shape[dim] < student.shape[dim]


def among(
    student: Tensor, teacher: TopK, dim: int, temperature: float, ignore: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Logits of both over k + 1 classes, the last one all others together; in float32 (float64) at least."""
    student, values, indices = wide(student), wide(teacher.values), teacher.indices.long()
    if ignore is not None:
        student = student.masked_fill(ignore.unsqueeze(dim), 0)
    chosen = student.gather(dim, indices)
    if indices.shape[dim] == student.shape[dim]:
        return chosen, values
    rest = values.new_full((), -math.inf) if teacher.rest is None else wide(teacher.rest)
    shape = [1 if axis == dim else size for axis, size in enumerate(values.shape)]
    both = torch.cat([chosen, _together(student, indices, dim, temperature)], dim)
    return both, torch.cat([values, rest.to(values.dtype).expand(shape)], dim)


def _together(x: Tensor, indices: Tensor, dim: int, temperature: float) -> Tensor:
    """The logit of all classes but the indexed ones, `dim` of size 1; -inf where there are none."""
    others = x.scatter(dim, indices, -math.inf)
    largest = others.detach().amax(dim, keepdim=True)
    largest = largest.masked_fill(largest == -math.inf, 0)
    total = ((others - largest) / temperature).exp().sum(dim, keepdim=True)
    none = total == 0
    return (temperature * total.masked_fill(none, 1).log() + largest).masked_fill(none, -math.inf)
