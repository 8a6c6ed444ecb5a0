"""gram in Triton.

forward: a program owns one chunk of a group's columns and one pair of row tiles, of the upper half of the symmetric
matrix; its products add up in float32 over the chunk (float64 for float64), and torch adds the chunks in float64.
backward: a program owns a tile of rows and one of columns of the result and walks through all row tiles of x.

Rows are padded to 16 at least, which is what tl.dot takes; all products are float32's own ("ieee"), because a loss
takes differences of them.

Bytes, with S the size of x: up to 64 rows forward reads S and writes and reads again S / 8 at most, backward reads S
and writes S. With more rows each tile is read once per tile of the other side, from L2 as long as a chunk fits into it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shapes import accumulation_dtype, empty_like, is_channels_last
from ..triton_layers import MOST_REGISTERS, aligned, kernel, launch, width
from . import laid_out
from .reference import row_factors

CHUNK = 2048  # columns whose products are added in float32
TILE = 1024  # elements of a tile of x: two of them, and of products as many as its rows, stay in registers
COLUMNS = 64  # of a tile of the gradient


class Rows(NamedTuple):
    """Where x[g, r, k] lies: k = (o, i), at g group_stride + r row_stride + o outer_stride + i, i < inner."""

    groups: int
    rows: int
    outer: int
    inner: int
    group_stride: int
    row_stride: int
    outer_stride: int

    @classmethod
    def of(cls, x: Tensor, axis: str) -> Rows:
        batch, channels, frames, bands = (*x.shape, 1, 1)[:4]
        sample = channels * frames * bands
        if axis == "samples":
            return cls(1, batch, 1, sample, 0, sample, 0)
        if axis == "channels":
            return cls(batch, channels, 1, frames * bands, sample, frames * bands, 0)
        if is_channels_last(x):
            outer, inner, outer_stride = 1, bands * channels, 0
        else:
            outer, inner, outer_stride = channels, bands, frames * bands
        if axis == "frames":
            return cls(batch, frames, outer, inner, sample, inner, outer_stride)
        return cls(frames, batch, outer, inner, inner, sample, outer_stride)

    @property
    def columns(self) -> int:
        return self.outer * self.inner

    @property
    def strides(self) -> tuple[int, int, int, int]:
        return self.inner, self.group_stride, self.row_stride, self.outer_stride

    def width(self, x: Tensor) -> int:
        """What divides all strides (triton_layers.width). Whole samples are judged by one frame, which does not vary."""
        if self.groups == 1 and self.outer == 1:
            return width(x, x.shape[1] * x.shape[3:].numel())
        return width(x, *self.strides)

    def block(self, x: Tensor) -> int:
        """Rows of a tile: few for few rows, but of loads of one element, which are compiled for one tile only."""
        return 32 if self.width(x) == 1 else max(16, min(64, triton.next_power_of_2(self.rows)))

    def chunk(self, x: Tensor) -> int:
        """Columns of a program: sums of all chunks take at most an eighth of x."""
        block = self.block(x)
        least = 8 * block * triton.cdiv(self.rows, block) * accumulation_dtype(x.dtype).itemsize
        return max(CHUNK, triton.next_power_of_2(least // x.element_size()))


@triton.jit
def load_tile(
    x_ptr, r, k, rows, columns, inner, row_stride, outer_stride,
    FLAT: tl.constexpr, SHIFTED: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """Rows r, columns k of the group at x_ptr, widened and shifted; zero where there are none."""
    offset = k if FLAT else k // inner * outer_stride + k % inner
    inside = (r < rows)[:, None] & (k < columns)[None, :]
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    x = tl.load(x_ptr + r[:, None] * row_stride + offset[None, :], inside, other=0).to(dtype)
    if SHIFTED:
        first = tl.load(x_ptr + offset, k < columns, other=0).to(dtype)
        x -= tl.where(inside & (r > 0)[:, None], first[None, :], 0)
    return x


@kernel
def forward_kernel(
    x_ptr,
    partial_ptr,  # (chunks, groups, rows, rows)
    rows,
    columns,
    inner,
    group_stride,
    row_stride,
    outer_stride,
    groups,
    chunk,  # a multiple of CHUNK
    tiles,  # of rows
    FLAT: tl.constexpr,
    SHIFTED: tl.constexpr,
    DOUBLE: tl.constexpr,
    WIDTH: tl.constexpr,  # divides inner and the strides
    CHUNK: tl.constexpr,
    ONE_TILE: tl.constexpr,  # in float64, whose kernel spills where it has the branch: no other tile than the first
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    # Pairs of the same chunk follow each other, so that they find it in L2.
    pairs = tiles * (tiles + 1) // 2
    pair = program % pairs
    group = program // pairs % groups
    chunk = aligned(chunk, CHUNK)
    columns, inner = aligned(columns, WIDTH), aligned(inner, WIDTH)
    outer_stride, row_stride = aligned(outer_stride, WIDTH), aligned(row_stride, WIDTH)
    first_column = program // pairs // groups * chunk
    x_ptr += group * aligned(group_stride, WIDTH)
    left_tile = tl.zeros((), tl.int64)
    right_tile = pair
    if not ONE_TILE:
        while right_tile >= tiles - left_tile:
            right_tile -= tiles - left_tile
            left_tile += 1
        right_tile += left_tile
    i = left_tile * BLOCK_R + tl.arange(0, BLOCK_R)
    j = right_tile * BLOCK_R + tl.arange(0, BLOCK_R)
    end = tl.minimum(first_column + chunk, columns)
    total = tl.zeros((BLOCK_R, BLOCK_R), tl.float64 if DOUBLE else tl.float32)
    for begin in range(first_column, end, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)
        left = load_tile(x_ptr, i, k, rows, columns, inner, row_stride, outer_stride, FLAT, SHIFTED, DOUBLE)
        right = left
        if not ONE_TILE and left_tile != right_tile:
            right = load_tile(x_ptr, j, k, rows, columns, inner, row_stride, outer_stride, FLAT, SHIFTED, DOUBLE)
        total = tl.dot(left, tl.trans(right), total, input_precision="ieee", out_dtype=total.dtype)
    partial_ptr += (program // pairs // groups * groups + group) * rows * rows
    inside = (i < rows)[:, None] & (j < rows)[None, :]
    tl.store(partial_ptr + i[:, None] * rows + j[None, :], total, inside)
    if not ONE_TILE and left_tile != right_tile:
        tl.store(partial_ptr + j[None, :] * rows + i[:, None], total, inside)


@kernel
def backward_kernel(
    matrix_ptr,  # (groups, rows, rows)
    x_ptr,
    result_ptr,  # laid out as x
    rows,
    columns,
    inner,
    group_stride,
    row_stride,
    outer_stride,
    column_tiles,
    row_tiles,
    FLAT: tl.constexpr,
    SHIFTED: tl.constexpr,
    DOUBLE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    # Row tiles of the same columns follow each other: they read the same of x.
    i = program % row_tiles * BLOCK_R + tl.arange(0, BLOCK_R)
    k = program // row_tiles % column_tiles * BLOCK_K + tl.arange(0, BLOCK_K)
    group = program // row_tiles // column_tiles
    columns, inner = aligned(columns, WIDTH), aligned(inner, WIDTH)
    group_stride, row_stride = aligned(group_stride, WIDTH), aligned(row_stride, WIDTH)
    outer_stride = aligned(outer_stride, WIDTH)
    x_ptr += group * group_stride
    matrix_ptr += group * rows * rows
    total = tl.zeros((BLOCK_R, BLOCK_K), tl.float64 if DOUBLE else tl.float32)
    for begin in range(0, rows, BLOCK_S):
        j = begin + tl.arange(0, BLOCK_S).to(tl.int64)
        x = load_tile(x_ptr, j, k, rows, columns, inner, row_stride, outer_stride, FLAT, SHIFTED, DOUBLE)
        inside = (i < rows)[:, None] & (j < rows)[None, :]
        factors = tl.load(matrix_ptr + i[:, None] * rows + j[None, :], inside, other=0)
        total = tl.dot(factors, x, total, input_precision="ieee", out_dtype=total.dtype)
    offset = k if FLAT else k // inner * outer_stride + k % inner
    target_ptr = result_ptr + group * group_stride + i[:, None] * row_stride + offset[None, :]
    tl.store(target_ptr, total.to(result_ptr.dtype.element_ty), (i < rows)[:, None] & (k < columns)[None, :])


def forward(x: Tensor, axis: str, shifted: bool) -> Tensor:
    x = laid_out(x, axis)
    at = Rows.of(x, axis)
    chunk, block = at.chunk(x), at.block(x)
    chunks, tiles = triton.cdiv(at.columns, chunk), triton.cdiv(at.rows, block)
    partial = x.new_empty((chunks, at.groups, at.rows, at.rows), dtype=accumulation_dtype(x.dtype))
    launch(
        forward_kernel, chunks * at.groups * tiles * (tiles + 1) // 2, x,
        x, partial, at.rows, at.columns, *at.strides, at.groups, chunk, tiles,
        FLAT=at.outer == 1, SHIFTED=shifted, DOUBLE=x.dtype == torch.float64, WIDTH=at.width(x), CHUNK=CHUNK,
        ONE_TILE=tiles == 1 and x.dtype == torch.float64,
        BLOCK_R=block, BLOCK_K=TILE // block, num_warps=8 if block > 16 else 4, registers=MOST_REGISTERS,
    )  # fmt: skip
    return partial.sum(0, dtype=torch.float64)


def backward(grad: Tensor, x: Tensor, axis: str, shifted: bool) -> Tensor:
    x = laid_out(x, axis)
    at = Rows.of(x, axis)
    result = empty_like(x)
    matrix = row_factors(grad, shifted).to(accumulation_dtype(x.dtype)).contiguous()
    block = min(at.block(x), 32)
    column_tiles, row_tiles = triton.cdiv(at.columns, COLUMNS), triton.cdiv(at.rows, block)
    launch(
        backward_kernel, at.groups * column_tiles * row_tiles, x,
        matrix, x, result, at.rows, at.columns, *at.strides, column_tiles, row_tiles,
        FLAT=at.outer == 1, SHIFTED=shifted, DOUBLE=x.dtype == torch.float64, WIDTH=at.width(x),
        BLOCK_R=block, BLOCK_S=16, BLOCK_K=COLUMNS, num_warps=8 if block == 32 else 4, registers=MOST_REGISTERS,
    )  # fmt: skip
    return result
