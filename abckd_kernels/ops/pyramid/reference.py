"""pyramid in plain PyTorch: the definition, and what serves CPUs, where its two products run in the BLAS library.

On a CPU the difference exists in blocks that stay in the cache: forward reads student and teacher once, backward both
once, and writes the gradient. Elsewhere a block is everything: one feature's size, for the moment.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..shapes import empty_like, frame_mask
from . import Grids, band_windows, cell_weights, dtype_of, windows

BLOCK = 2**19  # elements: large enough that what an operator costs by itself does not count


def forward(
    student: Tensor, teacher: Tensor, levels: list[int], lengths: Tensor | None, padded_length: int
) -> tuple[Tensor, Tensor]:
    dtype, mask = dtype_of(student, teacher), frame_mask(lengths, student.shape[2], padded_length)
    grids = _grids(student, levels, mask, dtype)
    cells = student.new_empty((*student.shape[:2], *grids.weights.shape[1:]), dtype=dtype)
    squares = student.new_empty(student.shape[:2], dtype=dtype)
    for samples, channels in _blocks(student):
        difference = _difference(student, teacher, mask, dtype, samples, channels)
        squares[samples, channels] = torch.linalg.vector_norm(difference, dim=(2, 3)).square()
        cells[samples, channels] = _of(grids.frames, samples)[:, None] @ difference @ grids.bands.T
    return squares.sum(1) * grids.fine + (cells.square().sum(1) * grids.weights).sum((1, 2)), cells


def backward(
    grad_errors: Tensor, student: Tensor, teacher: Tensor, cells: Tensor, levels: list[int], lengths: Tensor | None,
    padded_length: int,
) -> Tensor:  # fmt: skip
    dtype, mask = cells.dtype, frame_mask(lengths, student.shape[2], padded_length)
    grids, result = _grids(student, levels, mask, dtype), empty_like(student)
    fine = (2 * grad_errors * grids.fine)[:, None, None, None]
    coarse = (2 * grad_errors)[:, None, None, None] * grids.weights[:, None] * cells @ grids.bands
    for samples, channels in _blocks(student):
        grad = _difference(student, teacher, mask, dtype, samples, channels).mul_(fine[samples])
        grad += _of(grids.frames, samples).mT[:, None] @ coarse[samples, channels]
        if mask is not None:
            grad.masked_fill_(~mask[samples, None, :, None], 0)
        result[samples, channels] = grad
    return result


def _grids(x: Tensor, levels: list[int], mask: Tensor | None, dtype: torch.dtype) -> Grids:
    if mask is not None:
        return _grids_of(mask.sum(1), x.shape[1:], levels, dtype)
    # On a GPU, tensors of one call are no use to the next: a CUDA graph may own them.
    make = _kept if x.device.type == "cpu" else _fresh
    return make(x.shape[1:], tuple(levels), dtype, x.device)


def _fresh(sizes: torch.Size, levels: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Grids:
    return _grids_of(torch.full((1,), sizes[1], device=device), sizes, levels, dtype)


@lru_cache(maxsize=64)
def _kept(*described) -> Grids:
    with torch.inference_mode(False):
        return _fresh(*described)


def _grids_of(valid: Tensor, sizes: torch.Size, levels, dtype: torch.dtype) -> Grids:
    channels, frames, bands = sizes
    rows = torch.cat([windows(valid, level, frames, dtype) for level in (*levels, 0)], 1)
    return Grids(
        rows, band_windows(levels, bands, dtype, valid.device), *cell_weights(valid, channels, bands, levels, dtype)
    )


def _blocks(x: Tensor) -> list[tuple[slice, slice]]:
    """Slices of samples and of channels that cover `x`."""
    if x.device.type != "cpu":
        return [(slice(None), slice(None))]
    # Channels of a feature that isn't contiguous lie side by side: a part of them would read all of it.
    channels = max(1, BLOCK // x.shape[2:].numel()) if x.is_contiguous() else x.shape[1]
    samples = max(1, BLOCK // x.shape[1:].numel())
    return [
        (slice(b, b + samples), slice(c, c + channels))
        for b in range(0, x.shape[0], samples)
        for c in range(0, x.shape[1], channels if samples == 1 else x.shape[1])
    ]


def _difference(
    student: Tensor, teacher: Tensor, mask: Tensor | None, dtype: torch.dtype, samples: slice, channels: slice
) -> Tensor:
    s, t = (x[samples, channels].to(dtype) for x in (student, teacher))
    difference = (s - t).contiguous()
    if mask is not None:
        difference.masked_fill_(~mask[samples, None, :, None], 0)
    return difference


def _of(x: Tensor, samples: slice) -> Tensor:
    return x if x.shape[0] == 1 else x[samples]
