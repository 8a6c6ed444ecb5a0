"""correlation in plain PyTorch: the definition, and what serves CPUs.

On a CPU blocks of rows stay in its cache from the softmax to the sums, each centred at its own mean, and are joined in
float64. Elsewhere all rows are one block.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..shapes import accumulation_dtype, matrix_dtype
from . import along_classes, along_rows

BLOCK = 2**19  # logits at once on a CPU, or
ROWS = 32  # rows, if that is more


class _Blocks:
    """Blocks of logits (outer, classes, inner) as probabilities minus 1 / classes; 0 where rows don't count."""

    def __init__(self, student: Tensor, teacher: Tensor, ignore: Tensor | None, temperature: Tensor):
        self.logits, self.ignore, self.classes = (student, teacher), ignore, student.shape[1]
        self.temperature = temperature.item() if temperature.device.type == "cpu" else temperature

    def __iter__(self) -> Iterator[tuple[tuple, Tensor | None, list[Tensor]]]:
        """(place, ignored rows (outer, 1, inner) or None, [student's, teacher's])."""
        outer, classes, inner = self.logits[0].shape
        rows, columns = outer, inner
        if self.logits[0].device.type == "cpu" and outer and inner:
            rows = max(BLOCK // (classes * inner), ROWS // inner, 1)
            columns = inner if rows > 1 else max(BLOCK // classes, ROWS)
        for first in range(0, outer, max(rows, 1)):
            for begin in range(0, inner, max(columns, 1)):
                place = slice(first, first + rows), slice(None), slice(begin, begin + columns)
                ignored = None if self.ignore is None else self.ignore[place]
                yield place, ignored, [self._probabilities(x[place], ignored) for x in self.logits]

    def _probabilities(self, x: Tensor, ignored: Tensor | None) -> Tensor:
        x = x.to(accumulation_dtype(x.dtype))
        x = x if ignored is None else x.masked_fill(ignored, 0)
        if not isinstance(self.temperature, float) or self.temperature != 1:
            x = x / self.temperature
        return _classes_last(x).softmax(1).sub_(1 / self.classes).view(x.shape)


def _classes_last(x: Tensor) -> Tensor:
    """A block without its last axis, if that is 1: softmax and its derivative are slow along any axis but the last."""
    return x.squeeze(2) if x.shape[2] == 1 else x


def forward(
    student: Tensor, teacher: Tensor, ignore: Tensor | None, temperature: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype, wide = accumulation_dtype(student.dtype), matrix_dtype(student.device)
    outer, classes, inner = student.shape
    total, count = (student.new_zeros((), dtype=wide) for _ in range(2))
    means, squares = (student.new_zeros((3, classes), dtype=wide) for _ in range(2))
    by_row = student.new_zeros((2, outer, 1, inner), dtype=dtype)
    for place, ignored, (q, p) in _Blocks(student, teacher, ignore, temperature):
        maps = q, p, q - p
        of_q, of_p, of_difference = (torch.linalg.vector_norm(x, dim=1, keepdim=True).square() for x in maps)
        distance, by_row[0][place], by_row[1][place] = along_classes(of_q, of_p, of_difference, classes)
        counts = None if ignored is None else ~ignored
        total = total + (distance if counts is None else distance * counts).sum().to(wide)
        rows = count.new_full((), q.shape[0] * q.shape[2]) if counts is None else counts.sum().to(wide)
        both, fresh = count + rows, rows.clamp_min(1)
        sums = [x.sum((0, 2), keepdim=True) for x in maps]
        centred = [x.sub_(y / fresh.to(dtype)) for x, y in zip(maps, sums, strict=True)]
        if counts is not None:
            centred = [x.mul_(counts) for x in centred]
        apart = torch.cat(sums)[..., 0].to(wide) / fresh - means
        squares += torch.stack([x.square().sum((0, 2)) for x in centred]).to(wide)
        squares += apart.square() * (count * rows / both.clamp_min(1))
        means += apart * (rows / both.clamp_min(1))
        count = both
    distance, by_class = along_rows(means[:2], squares, count, dtype)
    count = count.clamp_min(1)
    return (total / count).to(dtype), distance, by_class, by_row, count.to(dtype)


def backward(
    grad_along_classes: Tensor, grad_along_rows: Tensor, student: Tensor, teacher: Tensor, ignore: Tensor | None,
    temperature: Tensor, by_class: Tensor, by_row: Tensor, count: Tensor,
) -> Tensor:  # fmt: skip
    result = student.new_empty(student.shape)
    a_class, b_class, shift = (by_class * grad_along_rows).view(3, 1, -1, 1)
    a_row, b_row = by_row * (grad_along_classes / count)
    blocks = _Blocks(student, teacher, ignore, temperature)
    for place, ignored, (q, p) in blocks:
        grad = torch.addcmul(shift, q, a_class)
        for x, factor in ((q, a_row[place]), (p, b_class), (p, b_row[place])):
            grad.addcmul_(x, factor)
        q = q.add_(1 / blocks.classes)
        # What autograd calls for a softmax: one pass, where its formula takes four.
        grad = torch.ops.aten._softmax_backward_data(_classes_last(grad), _classes_last(q), 1, grad.dtype)
        grad = grad.div_(blocks.temperature).view(q.shape)
        result[place] = grad if ignored is None else grad.masked_fill_(ignored, 0)
    return result
