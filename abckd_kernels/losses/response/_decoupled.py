"""What DKD makes of logits: the divergence without the target class, and the two logits target against all others.

Bytes, S the size of the logits in float32: forward copies both without the target (2 S written) and reads the copies
in the op `divergence`, whose normalisers are the log-sum-exp of the other classes; backward is the op's, and one more
pass.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ... import backends
from ...ops import shapes
from ...ops.contract import connect_refusal
from ...ops.divergence import KINDS

KIND = KINDS.index("kl")


class _Decoupled(torch.autograd.Function):
    @staticmethod
    def forward(student, teacher, target, ignore, dim, temperature, options):
        others = [_without(x, target, ignore, dim) for x in (student, teacher)]
        rows = [_rows(x, dim) for x in others]
        skip = None if ignore is None else ignore.reshape(-1)
        kernel = backends.kernel("divergence_forward", student.device)
        values, saved = kernel(*rows, skip, KIND, 0.5, temperature, options, True)
        shape = student.shape[:dim] + student.shape[dim + 1 :]
        temperature = temperature if options is None else options[1]
        dead = saved[1] == math.inf
        sums = [
            (saved[i] + saved[i + 1] * temperature).masked_fill(dead, -math.inf).view(shape).unsqueeze(dim)
            for i in (0, 2)
        ]
        targets = [x.gather(dim, target).to(values.dtype) for x in (student, teacher)]
        binary = [torch.cat(pair, dim) for pair in zip(targets, sums, strict=True)]
        return values.view(shape), *binary, *others, saved

    @staticmethod
    def setup_context(ctx, inputs, output):
        student, _, target, _, ctx.dim, ctx.temperature, options = inputs
        _, _, binary_teacher, *kept = output
        ctx.mark_non_differentiable(binary_teacher, *kept)
        ctx.save_for_backward(student, target, options, *kept)

    @staticmethod
    def backward(ctx, value_grads, binary_grads, *_):
        given, target, options, student, teacher, saved = ctx.saved_tensors
        dim, temperature = ctx.dim, ctx.temperature
        rows = _rows(student, dim), _rows(teacher, dim)
        kernel = backends.kernel("divergence_backward", student.device)
        grad = kernel(value_grads.reshape(-1), *rows, saved, KIND, 0.5, temperature, options)
        temperature = temperature if options is None else options[1]
        # The log-sum-exp of the others, times temperature, changes with each of them by its probability.
        of_target, of_sum = binary_grads.split(1, dim)
        per_row = (rows[0].shape[0], 1, rows[0].shape[2])
        q = (rows[0] - saved[0].view(per_row)).div_(temperature).sub_(saved[1].view(per_row)).exp_()
        grad = torch.addcmul(grad, q, of_sum.reshape(per_row)).view(student.shape)
        grad = grad.scatter_(dim, target, of_target).to(given.dtype)
        return connect_refusal(grad, given, value_grads, binary_grads), *[None] * 6


def decoupled(
    student: Tensor, teacher: Tensor, target: Tensor, ignore: Tensor | None, dim: int, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """KL of the classes but the target, of the logits' shape without `dim`; and for student and teacher the logits of
    the target and of all others together, as `dim` of size 2.

    target   integers, the logits' shape with 1 in place of `dim`.
    """
    dtype = torch.promote_types(student.dtype, teacher.dtype)
    options = None
    if shapes.changing(temperature):
        options = shapes.scalar(temperature, torch.device("cpu"), torch.float64).expand(2).contiguous()
        temperature = 1.0
    return _Decoupled.apply(student.to(dtype), teacher.to(dtype), target, ignore, dim, temperature, options)[:3]


def _without(x: Tensor, target: Tensor, ignore: Tensor | None, dim: int) -> Tensor:
    """A copy whose target can't occur, 0 in rows that don't count: backward multiplies what is there by 0."""
    copy = torch.empty_like(x, dtype=shapes.accumulation_dtype(x.dtype), memory_format=torch.contiguous_format).copy_(x)
    if ignore is not None:
        copy.masked_fill_(ignore.unsqueeze(dim), 0)
    return copy.scatter_(dim, target, -math.inf)


def _rows(x: Tensor, dim: int) -> Tensor:
    return x.view(math.prod(x.shape[:dim]), x.shape[dim], math.prod(x.shape[dim + 1 :]))
