"""Squared means of a difference on several coarse grids and on its own one, and their gradient, in one pass each.

Windows of adaptive pooling are separable: a grid of a x b cells is a small matrix over frames, times the difference,
times a small matrix over bands; the rows of all grids are stacked. The difference is made again in backward. It exists
in blocks that stay in the cache: on the CPU forward reads student and teacher once, and backward reads both once and
writes the gradient. Elsewhere, and where a compiler traces, a block is everything: one feature's size, for the moment.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...ops.contract import connect_refusal
from ...ops.shapes import empty_like
from ..common.features import without_autocast

BLOCK = 2**19  # elements: large enough that what an operator costs by itself does not count


class Grids(NamedTuple):
    """What is compared. R and Q: rows and columns of all grids together.

    frames    (B or 1, R, T), windows over frames.
    bands     (Q, F), windows over bands.
    weights   (B or 1, R, Q), of each squared cell; zero where row and column are not of one grid.
    fine      (B or 1,), of the squared differences themselves.
    mask      (B, T) bool, valid frames; None: all.
    """

    frames: Tensor
    bands: Tensor
    weights: Tensor
    fine: Tensor
    mask: Tensor | None


def squared_cells(student: Tensor, teacher: Tensor, grids: Grids) -> Tensor:
    """(B,): sum over channels of fine * sum d^2 + sum over cells of weights * (pooled d)^2, for d = student - teacher.

    student, teacher   (B, C, T, F); the teacher gets no gradient.
    """
    with without_autocast(student):
        return _SquaredCells.apply(student, teacher, *grids)


class _SquaredCells(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student, teacher, *grids):
        grids = Grids(*grids)
        dtype = grids.fine.dtype
        cells = student.new_empty((*student.shape[:2], *grids.weights.shape[1:]), dtype=dtype)
        squares = student.new_empty(student.shape[:2], dtype=dtype)
        for samples, channels in _blocks(student):
            difference = _difference(student, teacher, grids, samples, channels)
            squares[samples, channels] = torch.linalg.vector_norm(difference, dim=(2, 3)).square()
            rows = torch.matmul(_of(grids.frames, samples)[:, None], difference)
            cells[samples, channels] = rows @ grids.bands.T
        ctx.save_for_backward(student, teacher, cells, *(x for x in grids if x is not None))
        return squares.sum(1) * grids.fine + (cells.square().sum(1) * grids.weights).sum((1, 2))

    @staticmethod
    def backward(ctx, grad):
        student, teacher, cells, *grids = ctx.saved_tensors
        grids = Grids(*grids, *[None] * (5 - len(grids)))
        result = empty_like(student)
        fine = (2 * grad * grids.fine)[:, None, None, None]
        coarse = (2 * grad)[:, None, None, None] * grids.weights[:, None] * cells @ grids.bands
        for samples, channels in _blocks(student):
            own = _difference(student, teacher, grids, samples, channels).mul_(_of(fine, samples))
            own += torch.matmul(_of(grids.frames, samples).mT[:, None], coarse[samples, channels])
            if grids.mask is not None:
                own.masked_fill_(~grids.mask[samples, None, :, None], 0)
            result[samples, channels] = own
        return connect_refusal(result, student, grad), *[None] * 6


def _blocks(x: Tensor) -> list[tuple[slice, slice]]:
    """Slices of samples and of channels that cover `x`."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return [(slice(None), slice(None))]
    # Channels of a feature that isn't contiguous lie side by side: a part of them would read all of it.
    channels = max(1, BLOCK // x.shape[2:].numel()) if x.is_contiguous() else x.shape[1]
    samples = max(1, BLOCK // x.shape[1:].numel())
    return [
        (slice(b, b + samples), slice(c, c + channels))
        for b in range(0, x.shape[0], samples)
        for c in range(0, x.shape[1], channels if samples == 1 else x.shape[1])
    ]


def _difference(student: Tensor, teacher: Tensor, grids: Grids, samples: slice, channels: slice) -> Tensor:
    s, t = (x[samples, channels].to(grids.fine.dtype) for x in (student, teacher))
    difference = (s - t).contiguous()
    if grids.mask is not None:
        difference.masked_fill_(~grids.mask[samples, None, :, None], 0)
    return difference


def _of(x: Tensor, samples: slice) -> Tensor:
    return x if x.shape[0] == 1 else x[samples]
