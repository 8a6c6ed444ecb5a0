"""pyramid: the mean square of a difference at its own size and on coarser grids, the hierarchical context loss.

With d = student - teacher, pool_l(d) its mean over the windows of adaptive pooling onto l x l cells (l over frames
alone where there are no bands), and w_l = 1/2, 1/4, 1/8, ... for the first, second, third level that a sample has,

    errors_b  =  [mean d^2 + sum_l w_l mean pool_l(d)^2] / (1 + sum_l w_l)

Means are over channels and valid positions, or cells. A sample has the levels below its number of valid frames, and its
grids lie over those frames alone, as if it were cut there. Window u of n positions onto l is floor(u n / l) ..
ceil((u + 1) n / l). Pooling is linear, so the difference is pooled, and it is separable: with the rows of all grids
in R (levels added up: 7 for 4, 2, 1), all cells are R d Q^T for two small matrices, of which the blocks on the diagonal
are grids. With G the weights of squared cells there, 0 elsewhere,

    errors  =  fine |d|^2 + sum G * (R d Q^T)^2,     ds  =  2 g (fine d + R^T (G * R d Q^T) Q)

The teacher gets no gradient. Bytes, with S the size of the student: forward reads S and T and writes a row of bands for
each of the R rows, which the second product reads; backward reads S and T and writes S. Cells are kept for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import shapes
from ..contract import op


def pyramid(
    student: Tensor,
    teacher: Tensor,
    *,
    levels: Sequence[int] = (4, 2, 1),
    lengths: Tensor | None = None,
    padded_length: int | None = None,
) -> Tensor:
    """Mean squares on several grids (the definition is at the top of this module), (B,).

    student         (B, C, T), (B, C, T, F) or (B, C, H, W); float32, float64, bfloat16 or float16. Contiguous and
                    channels_last are read as they lie, another layout costs a copy.
    teacher         of the same shape; detached. Its dtype and its layout may differ.
    levels          positive whole numbers: cells along each axis. Each sample has those below its valid frames.
    lengths         (B,) integers: valid frames; what later ones hold is not read.
    padded_length   the frames to which lengths refer; default: the features' own T.

    Returns float32 (float64 if a feature is). Raises TypeError or ValueError that names the argument.
    """
    for name, x in (("student", student), ("teacher", teacher)):
        shapes.check_feature(x, name)
    if teacher.shape != student.shape or teacher.device != student.device:
        expected = f"shape {tuple(student.shape)} on {student.device} as the student's"
        raise ValueError(f"teacher: expected {expected}, got {shapes.describe(teacher)}")
    check_levels(levels)
    padded_length = shapes.check_padded_length(student.shape[2] if padded_length is None else padded_length)
    lengths = shapes.check_lengths(lengths, student.shape[0], student.device)
    if student.dim() == 3:
        student, teacher = student[..., None], teacher[..., None]
    return _pyramid(student, teacher.detach(), list(levels), lengths, padded_length)


def check_levels(levels: Sequence[int]) -> None:
    """Raise ValueError unless `levels` are positive whole numbers."""
    if not isinstance(levels, Sequence) or any(not isinstance(x, int) or isinstance(x, bool) or x < 1 for x in levels):
        raise ValueError(f"levels: expected positive whole numbers, got {shapes.describe(levels)}")


class Grids(NamedTuple):
    """The grids of a batch, those of all samples alike where all frames are valid. R, Q: rows and columns of all.

    frames    (B or 1, R, T), row r averages over its window of frames.
    bands     (Q, F), row q averages over its window of bands.
    weights   (B or 1, R, Q), of each squared cell; zero where row and column are not of one grid.
    fine      (B or 1,), of the squared differences themselves.
    """

    frames: Tensor
    bands: Tensor
    weights: Tensor
    fine: Tensor


def widths(levels: Sequence[int], bands: int) -> list[int]:
    """Columns of each level's grid."""
    return [level if bands > 1 else 1 for level in levels]


def band_windows(levels: Sequence[int], bands: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`Grids.bands`."""
    size = torch.full((1,), bands, device=device)
    return torch.cat([windows(size, count, bands, dtype)[0] for count in (*widths(levels, bands), 0)])


def cell_weights(
    valid: Tensor, channels: int, bands: int, levels: Sequence[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """`Grids.weights` and `Grids.fine` of samples with so many valid frames (K,)."""
    columns = widths(levels, bands)
    weights = valid.new_zeros((len(valid), sum(levels), sum(columns)), dtype=dtype)
    total = share = valid.new_ones(len(valid), dtype=dtype)
    row = column = 0
    for level, width in zip(levels, columns, strict=True):
        has = valid > level
        weight = torch.where(has, share * 0.5, 0)
        share = torch.where(has, share * 0.5, share)
        total = total + weight
        cells = weights[:, row : row + level, column : column + width]
        cells.copy_((weight / (channels * level * width))[:, None, None].expand_as(cells))
        row, column = row + level, column + width
    unit = 1 / (total * valid.new_ones(len(valid), dtype=dtype))
    return weights * unit[:, None, None], unit / (valid * (bands * channels)).clamp_min(1)


def windows(sizes: Tensor, cells: int, length: int, dtype: torch.dtype) -> Tensor:
    """(K, cells, length): row u of item k averages over window u of adaptive pooling of sizes[k] positions."""
    cell, position = torch.arange(cells, device=sizes.device)[:, None], torch.arange(length, device=sizes.device)
    sizes = sizes[:, None, None]
    begin, end = cell * sizes // max(cells, 1), -(-(cell + 1) * sizes // max(cells, 1))
    inside = ((position >= begin) & (position < end)).to(dtype)
    return inside / inside.sum(2, keepdim=True).clamp_min(1)


def dtype_of(student: Tensor, teacher: Tensor) -> torch.dtype:
    """In which both are compared."""
    return shapes.accumulation_dtype(torch.promote_types(student.dtype, teacher.dtype))


def _forward_shapes(student, teacher, levels, lengths, padded_length):
    dtype, (batch, channels, _, bands) = dtype_of(student, teacher), student.shape
    cells = (batch, channels, sum(levels), sum(widths(levels, bands)))
    return student.new_empty(batch, dtype=dtype), student.new_empty(cells, dtype=dtype)


def _backward_shapes(grad_errors, student, teacher, cells, levels, lengths, padded_length):
    return shapes.empty_like(student)


_pyramid = op(
    __name__,
    forward="(Tensor student, Tensor teacher, int[] levels, Tensor? lengths, SymInt padded_length)"
    " -> (Tensor errors, Tensor cells)",
    backward="(Tensor grad_errors, Tensor student, Tensor teacher, Tensor cells, int[] levels, Tensor? lengths,"
    " SymInt padded_length) -> Tensor student",
    forward_shapes=_forward_shapes,
    backward_shapes=_backward_shapes,
)
