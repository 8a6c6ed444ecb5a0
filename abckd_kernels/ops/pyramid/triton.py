"""pyramid in Triton.

A column is one channel at one band, a tile [BLOCK_T frames, BLOCK_N columns]; columns that lie side by side in memory
follow each other, so contiguous and channels_last features are read alike. `forward_kernel` owns BLOCK_N columns of a
sample and walks through its valid frames: a product with the windows, 0 or 1, of all grids' rows, which are made here,
and the sum of squares. PyTorch takes the rows to cells, a product of their bands with (F, Q). `backward_kernel` owns
a tile of the gradient.

Bytes per sample, with 4 of each of N columns' R rows (a share of R / T of the difference): forward reads S and T and
writes rows, which PyTorch reads; backward reads S and T, per tile of frames the rows once more, mostly from L2, and
writes S. Accumulation in float32 (float64 for float64), products without TF32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shapes import dense, empty_like, is_channels_last
from ..shapes import valid_frames as valid_counts
from ..triton_layers import MOST_REGISTERS, count_valid, kernel, launch
from . import band_windows, cell_weights, dtype_of

FRAMES, COLUMNS = 32, 32  # of a tile; half as many columns in float64, whose products would spill


@triton.jit
def windows(r, valid, LEVELS: tl.constexpr):
    """First frame of each row's window and the one after its last; both 0 of rows that no grid has."""
    begin = tl.zeros_like(r)
    end = tl.zeros_like(r)
    first = 0
    for index in tl.static_range(len(LEVELS)):
        cell = r - first
        inside = (cell >= 0) & (cell < LEVELS[index])
        begin = tl.where(inside, cell * valid // LEVELS[index], begin)
        end = tl.where(inside, ((cell + 1) * valid + LEVELS[index] - 1) // LEVELS[index], end)
        first += LEVELS[index]
    return begin, end


@triton.jit
def columns_of(n, channels, bands, LAST: tl.constexpr):
    """Channel and band of columns as they follow each other in memory."""
    return (n % channels, n // channels) if LAST else (n // bands, n % bands)


@triton.jit
def pointers(ptr, sample, channel, band, t, channels, frames, bands, LAST: tl.constexpr):
    """To a sample's elements at frames (BLOCK_T,) of columns (BLOCK_N,), [BLOCK_T, BLOCK_N]."""
    ptr += sample * (channels * bands * frames)
    channel, band, t = channel[None, :], band[None, :], t[:, None]
    if LAST:
        return ptr + ((t * bands + band) * channels + channel)
    return ptr + ((channel * frames + t) * bands + band)


@triton.jit
def difference(student_ptr, teacher_ptr, sample, channel, band, t, inside, channels, frames, bands,
               LAST: tl.constexpr, TEACHER_LAST: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    s = tl.load(pointers(student_ptr, sample, channel, band, t, channels, frames, bands, LAST), inside, other=0)
    x = tl.load(pointers(teacher_ptr, sample, channel, band, t, channels, frames, bands, TEACHER_LAST), inside, other=0)
    return s.to(DTYPE) - x.to(DTYPE)


@triton.jit
def columns_and_rows(n, sample, lengths_ptr, channels, frames, bands, padded_length, LEVELS: tl.constexpr,
                     LENGTHS: tl.constexpr, LAST: tl.constexpr, BLOCK_R: tl.constexpr):  # fmt: skip
    """Channel and band of columns `n`; the sample's valid frames; the grids' rows, and where their windows lie."""
    channel, band = columns_of(n, channels, bands, LAST)
    valid = frames
    if LENGTHS:
        valid = count_valid(tl.load(lengths_ptr + sample), frames, padded_length)
    r = tl.arange(0, BLOCK_R).to(tl.int64)
    begin, end = windows(r, valid, LEVELS)
    return channel, band, valid, r, begin, end


@kernel
def forward_kernel(
    student_ptr,
    teacher_ptr,
    lengths_ptr,
    rows_ptr,  # (B, C, R, F)
    squares_ptr,  # (B, C, F)
    channels,
    frames,
    bands,
    padded_length,
    tiles,  # of columns
    LEVELS: tl.constexpr,
    ROWS: tl.constexpr,
    LENGTHS: tl.constexpr,
    LAST: tl.constexpr,
    TEACHER_LAST: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    channels = tl.full((), channels, tl.int64)
    frames = tl.full((), frames, tl.int64)
    bands = tl.full((), bands, tl.int64)
    sample = program // tiles
    columns = channels * bands
    n = program % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    channel, band, valid, r, begin, end = columns_and_rows(
        n, sample, lengths_ptr, channels, frames, bands, padded_length, LEVELS, LENGTHS, LAST, BLOCK_R
    )  # fmt: skip
    total = tl.zeros((BLOCK_R, BLOCK_N), DTYPE)
    squares = tl.zeros((BLOCK_N,), DTYPE)
    for first in range(0, valid, BLOCK_T):
        t = first + tl.arange(0, BLOCK_T)
        inside = (t < valid)[:, None] & (n < columns)[None, :]
        d = difference(student_ptr, teacher_ptr, sample, channel, band, t, inside,
                       channels, frames, bands, LAST, TEACHER_LAST, DTYPE)  # fmt: skip
        window = ((t[None, :] >= begin[:, None]) & (t[None, :] < end[:, None])).to(DTYPE)
        total = tl.dot(window, d, total, input_precision="ieee", out_dtype=DTYPE)
        squares += tl.sum(d * d, 0)
    total /= tl.maximum(end - begin, 1)[:, None].to(DTYPE)
    base = sample * channels + channel
    place_of = (base[None, :] * ROWS + r[:, None]) * bands + band[None, :]
    tl.store(rows_ptr + place_of, total, (r < ROWS)[:, None] & (n < columns)[None, :])
    tl.store(squares_ptr + base * bands + band, squares, n < columns)


@kernel
def backward_kernel(
    student_ptr,
    teacher_ptr,
    lengths_ptr,
    rows_ptr,  # (B, C, R, F): gradients of the rows
    fine_ptr,  # (B,): of the squared differences, times 2
    result_ptr,  # laid out as the student
    channels,
    frames,
    bands,
    padded_length,
    tiles,  # of columns
    frame_tiles,
    LEVELS: tl.constexpr,
    ROWS: tl.constexpr,
    LENGTHS: tl.constexpr,
    LAST: tl.constexpr,
    TEACHER_LAST: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    channels = tl.full((), channels, tl.int64)
    frames = tl.full((), frames, tl.int64)
    bands = tl.full((), bands, tl.int64)
    # Tiles of the same columns follow each other: they read the same rows.
    t = program % frame_tiles * BLOCK_T + tl.arange(0, BLOCK_T)
    n = program // frame_tiles % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    sample = program // frame_tiles // tiles
    columns = channels * bands
    channel, band, valid, r, begin, end = columns_and_rows(
        n, sample, lengths_ptr, channels, frames, bands, padded_length, LEVELS, LENGTHS, LAST, BLOCK_R
    )  # fmt: skip
    window = ((t[:, None] >= begin[None, :]) & (t[:, None] < end[None, :])).to(DTYPE)
    window /= tl.maximum(end - begin, 1)[None, :].to(DTYPE)
    place_of = ((sample * channels + channel)[None, :] * ROWS + r[:, None]) * bands + band[None, :]
    rows = tl.load(rows_ptr + place_of, (r < ROWS)[:, None] & (n < columns)[None, :], other=0)
    inside = (t < valid)[:, None] & (n < columns)[None, :]
    d = difference(student_ptr, teacher_ptr, sample, channel, band, t, inside,
                   channels, frames, bands, LAST, TEACHER_LAST, DTYPE)  # fmt: skip
    grad = tl.dot(window, rows, d * tl.load(fine_ptr + sample), input_precision="ieee", out_dtype=DTYPE)
    grad = tl.where(inside, grad, 0).to(result_ptr.dtype.element_ty)
    target = pointers(result_ptr, sample, channel, band, t, channels, frames, bands, LAST)
    tl.store(target, grad, (t < frames)[:, None] & (n < columns)[None, :])


def forward(
    student: Tensor, teacher: Tensor, levels: list[int], lengths: Tensor | None, padded_length: int
) -> tuple[Tensor, Tensor]:
    student, teacher = dense(student), dense(teacher)
    batch, channels, frames, bands = student.shape
    dtype, rows = dtype_of(student, teacher), sum(levels)
    by_row = student.new_empty((batch, channels, rows, bands), dtype=dtype)
    squares = student.new_empty((batch, channels, bands), dtype=dtype)
    tiles, constants = _describe(student, teacher, levels, lengths, dtype)
    launch(
        forward_kernel, batch * tiles, student, student, teacher, squares if lengths is None else lengths,
        by_row, squares, channels, frames, bands, padded_length, tiles, **constants,
    )  # fmt: skip
    cells = by_row @ band_windows(levels, bands, dtype, student.device).T
    weights, fine = _weights(student, levels, lengths, padded_length, dtype)
    return squares.sum((1, 2)) * fine + (cells.square().sum(1) * weights).sum((1, 2)), cells


def backward(
    grad_errors: Tensor, student: Tensor, teacher: Tensor, cells: Tensor, levels: list[int], lengths: Tensor | None,
    padded_length: int,
) -> Tensor:  # fmt: skip
    student, teacher, result = dense(student), dense(teacher), empty_like(student)
    _, channels, frames, bands = student.shape
    dtype = cells.dtype
    weights, fine = _weights(student, levels, lengths, padded_length, dtype)
    twice = 2 * grad_errors
    by_row = (twice[:, None, None] * weights)[:, None] * cells @ band_windows(levels, bands, dtype, student.device)
    tiles, constants = _describe(student, teacher, levels, lengths, dtype)
    frame_tiles = triton.cdiv(frames, FRAMES)
    launch(
        backward_kernel, len(student) * tiles * frame_tiles, student,
        student, teacher, cells if lengths is None else lengths, by_row, (twice * fine).contiguous(), result,
        channels, frames, bands, padded_length, tiles, frame_tiles, **constants,
    )  # fmt: skip
    return result


def _weights(
    x: Tensor, levels: list[int], lengths: Tensor | None, padded_length: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    _, channels, frames, bands = x.shape
    if lengths is None:
        valid = torch.full((1,), frames, device=x.device)
    else:
        valid = valid_counts(lengths, frames, padded_length)
    return cell_weights(valid, channels, bands, levels, dtype)


def _describe(
    student: Tensor, teacher: Tensor, levels: list[int], lengths: Tensor | None, dtype: torch.dtype
) -> tuple[int, dict]:
    """Tiles of columns, and the constants that both kernels have."""
    columns, rows = student.shape[1] * student.shape[3], sum(levels)
    block = COLUMNS // 2 if dtype == torch.float64 else COLUMNS
    return triton.cdiv(columns, block), {
        "LEVELS": tuple(levels),
        "ROWS": rows,
        "LENGTHS": lengths is not None,
        "LAST": is_channels_last(student),
        "TEACHER_LAST": is_channels_last(teacher),
        "DTYPE": tl.float64 if dtype == torch.float64 else tl.float32,
        "BLOCK_R": max(16, triton.next_power_of_2(rows)),
        "BLOCK_T": FRAMES,
        "BLOCK_N": block,
        "registers": MOST_REGISTERS,
    }
