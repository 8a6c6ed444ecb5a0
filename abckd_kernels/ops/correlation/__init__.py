"""correlation: how far Pearson's correlations between two networks' probabilities are from 1, along classes and rows.

A row is one choice of every index but the classes'. With q = softmax(student / temperature) and
p = softmax(teacher / temperature) of a row, rho Pearson's correlation and K classes:

    along_classes   mean over rows of 1 - rho(q_row, p_row), K values each
    along_rows      mean over classes of 1 - rho(q_class, p_class), one value per row that counts each

1 - rho of centred x and y is (|x - y|^2 - (|x| - |y|)^2) / (2 |x| |y|), which loses no digits where x and y are close;
along the classes the centre is 1 / K. What is constant to its digits has no correlation: there 1 - rho is 0 if both
are, else 1, without a gradient. The teacher gets no gradient. With g and h the gradients of the results, R rows that
count, a = (1 - d) / |x|^2 and b = -1 / (|x| |y|) for each pair x, y at distance d, and x centred:

    dq  =  g / R (a_row x + b_row y)  +  h / K (a_class x + b_class y),    ds  =  q (dq - sum_k q dq) / temperature

Logits lie as (outer, classes, inner), as in `divergence`. Bytes, with S the size of the student's logits in float32:
forward reads 2 S, and 2 S again for the sums over rows, which need the normalisers (the CPU has blocks of rows in its
cache); backward reads 2 S, again from a cache where one holds a row, and writes S. Kept for backward are two numbers
per row and three per class.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .. import shapes
from ..contract import op


class Distances(NamedTuple):
    """1 - rho, a scalar each; float32, or float64 for float64 logits."""

    along_classes: Tensor
    along_rows: Tensor


def correlation(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, dim: int = 1, ignore: Tensor | None = None
) -> Distances:
    """Mean distances from correlation 1 of two logit tensors (the definition is at the top of this module).

    student       logits of any shape; float32, float64, bfloat16 or float16.
    teacher       logits of the same shape; detached. Where dtypes differ, both are read in the one that holds both.
    temperature   divides the logits; a positive number. Compiled code does not depend on its value.
    dim           the axis of the classes.
    ignore        bool, of the logits' shape without `dim`: rows that are true don't count, whatever their logits.

    Both results are 0 where no row counts. Raises TypeError or ValueError that names the argument.
    """
    for name, x in (("student", student), ("teacher", teacher)):
        if not isinstance(x, Tensor) or x.dtype not in shapes.FEATURE_DTYPES or x.layout != torch.strided:
            raise TypeError(f"{name}: expected dense logits in a floating-point dtype, got {shapes.describe(x)}")
    if teacher.shape != student.shape or teacher.device != student.device:
        expected = f"shape {tuple(student.shape)} on {student.device} as student"
        raise ValueError(f"teacher: expected {expected}, got {shapes.describe(teacher)}")
    if not isinstance(dim, int) or not -student.dim() <= dim < student.dim():
        raise ValueError(f"dim: expected an axis of the logits {tuple(student.shape)}, got {shapes.describe(dim)}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: expected a positive number, got {temperature!r}")
    dim %= student.dim()
    if student.shape[dim] == 0:
        raise ValueError(f"student: expected at least one class, got shape {tuple(student.shape)} with dim {dim}")
    rows = student.shape[:dim] + student.shape[dim + 1 :]
    if ignore is not None:
        if not isinstance(ignore, Tensor) or ignore.dtype != torch.bool:
            raise TypeError(f"ignore: expected a bool tensor, got {shapes.describe(ignore)}")
        if ignore.shape != rows or ignore.device != student.device:
            expected = f"shape {tuple(rows)} on {student.device}, one per row of logits"
            raise ValueError(f"ignore: expected {expected}, got {shapes.describe(ignore)}")
    dtype = torch.promote_types(student.dtype, teacher.dtype)
    sizes = math.prod(student.shape[:dim]), student.shape[dim], math.prod(student.shape[dim + 1 :])
    student, teacher = student.to(dtype).reshape(sizes), teacher.detach().to(dtype).reshape(sizes)
    if ignore is not None:
        ignore = ignore.reshape(sizes[0], 1, sizes[2])
    return Distances(*_correlation(student, teacher, ignore, shapes.scalar(temperature, student.device)))


def constant_below(squares: Tensor) -> Tensor:
    """What sums of squares of centred x are at most if x, with these sums of squares, is constant to its digits."""
    return (8 * torch.finfo(squares.dtype).eps) ** 2 * squares


def compare(q: Tensor, p: Tensor, difference: Tensor, constant: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """1 - rho from sums of squares; and the factors a, b of -d rho = a q dq + b p dq. Where one is constant rho is 0,
    where both are it is 1."""
    none = constant[0] | constant[1]
    q, p = q.masked_fill(none, 1), p.masked_fill(none, 1)
    product = (q * p).sqrt()
    distance = ((difference - (q.sqrt() - p.sqrt()).square()) / (2 * product)).clamp_min(0)
    a, b = ((1 - distance) / q).masked_fill(none, 0), (-1 / product).masked_fill(none, 0)
    return torch.where(none, (constant[0] ^ constant[1]).to(q.dtype), distance), a, b


def along_classes(q: Tensor, p: Tensor, difference: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """`compare` of rows, from sums of squares of probabilities minus 1 / classes and of their difference."""
    return compare(q, p, difference, (q <= constant_below(q + 1 / classes), p <= constant_below(p + 1 / classes)))


def along_rows(means: Tensor, squares: Tensor, count: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean distance of the classes; and by_class (3, K) in `dtype`: a / K, b / K, and what centring takes off.

    means     (2, K) over rows that count, of probabilities minus 1 / K.
    squares   (3, K) sums of squares around these means, the third one of the difference.
    count     of rows, a scalar.
    """
    classes = means.shape[1]
    # Only as many digits as the probabilities have.
    digits = (8 * torch.finfo(dtype).eps) ** 2
    raw = squares[:2] + count * (means + 1 / classes).square()
    q, p, difference = squares.unbind(0)
    distance, a, b = compare(q, p, difference, (q <= digits * raw[0], p <= digits * raw[1]))
    shift = -(a * means[0] + b * means[1])
    return distance.mean().to(dtype), (torch.stack([a, b, shift]) / classes).to(dtype)


def _forward_shapes(student, teacher, ignore, temperature):
    dtype = shapes.accumulation_dtype(student.dtype)
    outer, classes, inner = student.shape
    scalar = student.new_empty((), dtype=dtype)
    by_class, by_row = (student.new_empty(size, dtype=dtype) for size in ((3, classes), (2, outer, 1, inner)))
    return scalar, scalar.clone(), by_class, by_row, scalar.clone()


def _backward_shapes(grad_along_classes, grad_along_rows, student, *others):
    return student.new_empty(student.shape)


_correlation = op(
    __name__,
    forward="(Tensor student, Tensor teacher, Tensor? ignore, Tensor temperature)"
    " -> (Tensor along_classes, Tensor along_rows, Tensor by_class, Tensor by_row, Tensor count)",
    backward="(Tensor grad_along_classes, Tensor grad_along_rows, Tensor student, Tensor teacher, Tensor? ignore,"
    " Tensor temperature, Tensor by_class, Tensor by_row, Tensor count) -> Tensor student",
    forward_shapes=_forward_shapes,
    backward_shapes=_backward_shapes,
)
