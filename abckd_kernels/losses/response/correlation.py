"""Pearson's correlations between the probabilities of two networks, along the classes and along the rows.

rho of centred q and p is 1 - distance with distance = (|q - p|^2 - (|q| - |p|)^2) / (2 |q| |p|), which loses no digits
where q and p are close. The probabilities of a row have mean 1 / K. Sums over rows are taken in blocks, each centred at
its own mean, and joined in float64.

Bytes: forward reads both logits once; backward reads both once, computes the probabilities again and writes the
student's gradient. What is made on the way has the size of a block, and two numbers per row are kept for backward.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..common.arithmetic import small, wide

BLOCK = 2**19  # logits at once, or
ROWS = 32  # rows, if that is more: a block's sums of classes are joined in float64


def constant_below(squares: Tensor) -> Tensor:
    """What sums of squares of centred x are at most if x, with these sums of squares, is constant to its digits."""
    return (8 * torch.finfo(squares.dtype).eps) ** 2 * squares


class _Blocks:
    """Blocks of logits (outer, classes, inner) as probabilities minus 1 / classes; 0 where rows don't count."""

    def __init__(self, student: Tensor, teacher: Tensor, valid: Tensor | None, temperature: float):
        self.logits, self.valid, self.temperature = (student, teacher), valid, temperature
        self.classes = student.shape[1]

    def __iter__(self) -> Iterator[tuple[tuple, Tensor | None, list[Tensor]]]:
        """(place, valid rows (outer, 1, inner) or None, [student's, teacher's])."""
        outer, classes, inner = self.logits[0].shape
        rows = max(BLOCK // (classes * inner), ROWS // inner, 1)
        columns = inner if rows > 1 else max(BLOCK // classes, ROWS)
        for first in range(0, outer, rows):
            for begin in range(0, inner, columns):
                place = slice(first, first + rows), slice(None), slice(begin, begin + columns)
                valid = None if self.valid is None else self.valid[place]
                yield place, valid, [self._probabilities(x[place], valid) for x in self.logits]

    def _probabilities(self, x: Tensor, valid: Tensor | None) -> Tensor:
        x = wide(x) if valid is None else wide(x).masked_fill(~valid, 0)
        x = x if self.temperature == 1 else x / self.temperature
        return _classes_last(x).softmax(1).sub_(1 / self.classes).view(x.shape)


def _classes_last(x: Tensor) -> Tensor:
    """A block without its last axis, if that is 1: softmax and its derivative are slow along any axis but the last."""
    return x.squeeze(2) if x.shape[2] == 1 else x


def _compare(q: Tensor, p: Tensor, difference: Tensor, constant: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """1 - rho from sums of squares; and the factors a, b of -d rho = a q dq + b p dq. Where one is constant rho is 0,
    where both are it is 1."""
    none = constant[0] | constant[1]
    q, p = q.masked_fill(none, 1), p.masked_fill(none, 1)
    product = (q * p).sqrt()
    distance = ((difference - (q.sqrt() - p.sqrt()).square()) / (2 * product)).clamp_min(0)
    a, b = ((1 - distance) / q).masked_fill(none, 0), (-1 / product).masked_fill(none, 0)
    return torch.where(none, (constant[0] ^ constant[1]).to(q.dtype), distance), a, b


def _along_classes(maps: tuple[Tensor, Tensor, Tensor], classes: int) -> tuple[Tensor, Tensor, Tensor]:
    sums = [torch.linalg.vector_norm(x, dim=1, keepdim=True).square() for x in maps]
    return _compare(*sums, [x <= constant_below(x + 1 / classes) for x in sums[:2]])


class _Distances(torch.autograd.Function):
    @staticmethod
    def forward(student, teacher, valid, temperature):
        blocks = _Blocks(student, teacher, valid, temperature)
        like = wide(student[:0])
        inter = small(like.new_zeros(()))
        count = inter.clone()
        means, squares = (small(like.new_zeros(3, blocks.classes)) for _ in "ms")
        by_row = like.new_empty((2, student.shape[0], 1, student.shape[2]))
        for place, mask, (q, p) in blocks:
            maps = q, p, q - p
            distance, *factors = _along_classes(maps, blocks.classes)
            for index, factor in enumerate(factors):
                by_row[index][place] = factor
            inter = inter + small((distance if mask is None else distance * mask).sum())
            rows = inter.new_full((), q.shape[0] * q.shape[2]) if mask is None else mask.sum().to(inter.dtype)
            both, fresh = count + rows, rows.clamp_min(1)
            total = [x.sum((0, 2), keepdim=True) for x in maps]
            centred = [x.sub_(y / fresh.to(x.dtype)) for x, y in zip(maps, total, strict=True)]
            if mask is not None:
                centred = [x.mul_(mask) for x in centred]
            mean = small(torch.cat(total)[..., 0]) / fresh
            apart = mean - means
            squares += small(torch.stack([x.square().sum((0, 2)) for x in centred]))
            squares += apart.square() * (count * rows / both.clamp_min(1))
            means += apart * (rows / both.clamp_min(1))
            count = both
        # Only as many digits as the probabilities have.
        digits = constant_below(like.new_ones(())).to(count.dtype)
        raw = squares + count * (means + 1 / blocks.classes).square()
        constant = [squares[i] <= digits * raw[i] for i in range(2)]
        distance, a, b = _compare(*squares, constant)
        count = count.clamp_min(1)
        shift = -(a * means[0] + b * means[1])
        by_class = (torch.stack([a, b, shift]) / blocks.classes).to(like.dtype)
        return (inter / count).to(like.dtype), distance.mean().to(like.dtype), by_class, by_row, count

    @staticmethod
    def setup_context(ctx, inputs, output):
        student, teacher, valid, ctx.temperature = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(student, teacher, valid, *output[2:])

    @staticmethod
    def backward(ctx, inter_grad, intra_grad, *_):
        student, teacher, valid, by_class, by_row, count = ctx.saved_tensors
        result = torch.empty_like(student, memory_format=torch.contiguous_format)
        a_class, b_class, shift = (by_class * intra_grad).view(3, 1, -1, 1)
        a_row, b_row = by_row * (inter_grad / count.to(inter_grad.dtype))
        blocks = _Blocks(student, teacher, valid, ctx.temperature)
        for place, mask, (q, p) in blocks:
            grad = torch.addcmul(shift, q, a_class)
            for x, factor in ((q, a_row[place]), (p, b_class), (p, b_row[place])):
                grad.addcmul_(x, factor)
            q = q.add_(1 / blocks.classes)
            # What autograd calls for a softmax: one pass, where its formula takes four.
            grad = torch.ops.aten._softmax_backward_data(_classes_last(grad), _classes_last(q), 1, grad.dtype)
            grad = grad.div_(ctx.temperature).view(q.shape)
            result[place] = grad if mask is None else grad.masked_fill_(~mask, 0)
        return result, None, None, None


def correlation_distances(
    student: Tensor, teacher: Tensor, ignore: Tensor | None, dim: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """The mean over rows of 1 - rho along the classes, and the mean over classes of 1 - rho along the rows.

    ignore   bool, the logits' shape without `dim`: rows that don't count; or None.
    """
    shape = math.prod(student.shape[:dim]), student.shape[dim], math.prod(student.shape[dim + 1 :])
    valid = None if ignore is None else ~ignore.reshape(shape[0], 1, shape[2])
    return _Distances.apply(student.reshape(shape), teacher.reshape(shape), valid, temperature)[:2]
