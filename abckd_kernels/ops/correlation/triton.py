"""correlation in Triton.

A tile is [BLOCK_R rows, BLOCK_K classes]. Its rows are of one sample: rows in memory (inner = 1) are one sample, planes
are `outer` samples of `inner` rows. `row_kernel` walks through the classes of its rows twice: for their normalisers,
and for the sums of squares of a row. `class_kernel` owns BLOCK_K classes of a part of the rows: each tile is centred at
its own mean, and tiles are joined in float64; parts are joined by PyTorch. `backward_kernel` walks through the classes
three times: normalisers, the softmax's sum, the gradient.

Bytes: forward reads both logits from memory twice, a third time from a cache where one holds BLOCK_R rows, and writes
seven numbers per row, which `class_kernel` reads in part, and six per class and part; backward reads both once, two
more times from a cache, and writes the gradient. Accumulation: float32 (float64 for float64) within a row or a tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shapes import accumulation_dtype
from ..triton_layers import MOST_REGISTERS, kernel, launch
from . import along_classes, along_rows

ELEMENTS = 512  # of a tile: four per thread, of float64 two: all else goes to local memory
ROWS, CLASSES = 16, 32  # of a tile that sums over rows, of float64 half the classes
PARTS = 16  # of the rows, at most, for each of which a program sums


@triton.jit
def strides(rows, classes, PLANES: tl.constexpr):
    """From row to row and from class to class of a sample."""
    return 1 if PLANES else classes, rows if PLANES else 1


@triton.jit
def place_of(program, tiles, rows, classes, PLANES: tl.constexpr, BLOCK_R: tl.constexpr):
    """Rows (BLOCK_R, 1) counted through all samples, those that exist, and where each one's logits begin."""
    sample = program // tiles
    r = program % tiles * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    stride_r, _ = strides(rows, classes, PLANES)
    return sample * rows + r, r < rows, sample * (rows * classes) + r * stride_r


@triton.jit
def read(ptr, offset, inside, scale, dtype: tl.constexpr):
    """Logits over the temperature; those that are not there are far below all others."""
    return tl.where(inside, tl.load(ptr + offset, inside, other=0).to(dtype) * scale, -float("inf"))


@triton.jit
def normalisers(ptr, begin_at, counts, classes, stride_k, scale, DTYPE: tl.constexpr, LOWEST: tl.constexpr,
                BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """Maximum and logarithm of the sum of each row's exponentials, (BLOCK_R, 1)."""
    largest = tl.full((BLOCK_R, BLOCK_K), LOWEST, DTYPE)
    total = tl.zeros((BLOCK_R, BLOCK_K), DTYPE)
    for begin in range(0, classes, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)[None, :].to(tl.int64)
        x = read(ptr, begin_at + k * stride_k, counts & (k < classes), scale, DTYPE)
        most = tl.maximum(largest, x)
        total = total * tl.exp(largest - most) + tl.exp(x - most)
        largest = most
    most = tl.max(largest, 1)[:, None]
    total = tl.sum(total * tl.exp(largest - most), 1)[:, None]
    return most, tl.log(tl.where(counts, total, 1))


@triton.jit
def counted(ignore_ptr, row, exists, IGNORE: tl.constexpr):
    """Those of the rows that exist which count."""
    if IGNORE:
        exists = exists & (tl.load(ignore_ptr + row, exists, other=1) == 0)
    return exists


@triton.jit
def probabilities(student_ptr, teacher_ptr, offset, inside, scale, max_s, log_s, max_t, log_t, DTYPE: tl.constexpr):
    """The student's, q, and the teacher's, p; 0 where there are no logits."""
    q = tl.exp(read(student_ptr, offset, inside, scale, DTYPE) - max_s - log_s)
    return q, tl.exp(read(teacher_ptr, offset, inside, scale, DTYPE) - max_t - log_t)


@triton.jit
def whole_rows(student_ptr, teacher_ptr, ignore_ptr, temperature_ptr, rows, tiles, classes, PLANES: tl.constexpr,
               IGNORE: tl.constexpr, DTYPE: tl.constexpr, LOWEST: tl.constexpr,
               BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """The rows of a program that walks through all their classes: which they are, which exist and which count, where
    they begin and a class is from the next; 1 / temperature and 1 / classes; the normalisers of both networks."""
    row, exists, begin_at = place_of(tl.program_id(0).to(tl.int64), tiles, rows, classes, PLANES, BLOCK_R)
    _, stride_k = strides(rows, classes, PLANES)
    counts = counted(ignore_ptr, row, exists, IGNORE)
    scale = (1 / tl.load(temperature_ptr)).to(DTYPE)
    max_s, log_s = normalisers(
        student_ptr, begin_at, counts, classes, stride_k, scale, DTYPE, LOWEST, BLOCK_R, BLOCK_K
    )  # fmt: skip
    max_t, log_t = normalisers(
        teacher_ptr, begin_at, counts, classes, stride_k, scale, DTYPE, LOWEST, BLOCK_R, BLOCK_K
    )  # fmt: skip
    return row, exists, counts, begin_at, stride_k, scale, 1 / classes.to(DTYPE), max_s, log_s, max_t, log_t


@kernel
def row_kernel(
    student_ptr,  # (outer, classes, inner)
    teacher_ptr,
    ignore_ptr,  # (rows,)
    temperature_ptr,
    saved_ptr,  # (4, rows): maximum and log-sum of student and teacher
    sums_ptr,  # (3, rows): squares of q, p and q - p, 1 / classes taken off q and p
    samples,
    rows,  # of a sample
    tiles,  # of a sample
    classes,
    PLANES: tl.constexpr,  # rows lie side by side, classes apart
    IGNORE: tl.constexpr,
    DTYPE: tl.constexpr,
    LOWEST: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    classes = tl.full((), classes, tl.int64)
    rows = tl.full((), rows, tl.int64)
    step = samples * rows
    row, exists, counts, begin_at, stride_k, scale, uniform, max_s, log_s, max_t, log_t = whole_rows(
        student_ptr, teacher_ptr, ignore_ptr, temperature_ptr, rows, tiles, classes,
        PLANES, IGNORE, DTYPE, LOWEST, BLOCK_R, BLOCK_K,
    )  # fmt: skip
    qq = tl.zeros((BLOCK_R, BLOCK_K), DTYPE)
    pp = tl.zeros((BLOCK_R, BLOCK_K), DTYPE)
    ee = tl.zeros((BLOCK_R, BLOCK_K), DTYPE)
    for begin in range(0, classes, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)[None, :].to(tl.int64)
        inside = counts & (k < classes)
        q, p = probabilities(
            student_ptr, teacher_ptr, begin_at + k * stride_k, inside, scale, max_s, log_s, max_t, log_t, DTYPE
        )  # fmt: skip
        e = q - p
        q = tl.where(inside, q - uniform, 0)
        p = tl.where(inside, p - uniform, 0)
        qq += q * q
        pp += p * p
        ee += tl.where(inside, e * e, 0)
    tl.store(saved_ptr + row, max_s, exists)
    tl.store(saved_ptr + step + row, log_s, exists)
    tl.store(saved_ptr + 2 * step + row, max_t, exists)
    tl.store(saved_ptr + 3 * step + row, log_t, exists)
    tl.store(sums_ptr + row, tl.sum(qq, 1)[:, None], exists)
    tl.store(sums_ptr + step + row, tl.sum(pp, 1)[:, None], exists)
    tl.store(sums_ptr + 2 * step + row, tl.sum(ee, 1)[:, None], exists)


@triton.jit
def join(mean, square, x, fresh, count, counts):
    """Mean and sum of squares around it, float64 (1, BLOCK_K), with `fresh` rows of `x` joined to `count` old ones."""
    centre = tl.sum(x, 0)[None, :] / tl.maximum(fresh, 1).to(x.dtype)
    centred = tl.where(counts, x - centre, 0)
    apart = centre.to(tl.float64) - mean
    both = tl.maximum(count + fresh, 1)
    square += tl.sum(centred * centred, 0)[None, :].to(tl.float64) + apart * apart * (count * fresh / both)
    return mean + apart * (fresh / both), square


@kernel
def class_kernel(
    student_ptr, teacher_ptr, ignore_ptr, temperature_ptr,
    saved_ptr,  # (4, rows)
    partial_ptr,  # (parts, 7, classes) float64: means of q, p and q - p, their sums of squares, how many rows
    samples, rows, classes,
    row_parts, samples_of_part, rows_of_part,
    PLANES: tl.constexpr, IGNORE: tl.constexpr, DTYPE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    classes = tl.full((), classes, tl.int64)
    rows = tl.full((), rows, tl.int64)
    step = samples * rows
    blocks = tl.cdiv(classes, BLOCK_K)
    part = tl.program_id(0).to(tl.int64) // blocks
    k = tl.program_id(0).to(tl.int64) % blocks * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    stride_r, stride_k = strides(rows, classes, PLANES)
    first_sample = part // row_parts * samples_of_part
    first_row = part % row_parts * rows_of_part
    end = tl.minimum(first_row + rows_of_part, rows)
    scale = (1 / tl.load(temperature_ptr)).to(DTYPE)
    uniform = 1 / classes.to(DTYPE)
    q_mean = tl.zeros((1, BLOCK_K), tl.float64)
    p_mean = tl.zeros((1, BLOCK_K), tl.float64)
    e_mean = tl.zeros((1, BLOCK_K), tl.float64)
    q_square = tl.zeros((1, BLOCK_K), tl.float64)
    p_square = tl.zeros((1, BLOCK_K), tl.float64)
    e_square = tl.zeros((1, BLOCK_K), tl.float64)
    count = tl.zeros((), tl.float64)
    for sample in range(first_sample, tl.minimum(first_sample + samples_of_part, samples)):
        for first in range(first_row, end, BLOCK_R):
            r = first + tl.arange(0, BLOCK_R)[:, None]
            exists = r < end
            row = sample * rows + r
            counts = counted(ignore_ptr, row, exists, IGNORE)
            max_s = tl.load(saved_ptr + row, exists, other=0)
            log_s = tl.load(saved_ptr + step + row, exists, other=0)
            max_t = tl.load(saved_ptr + 2 * step + row, exists, other=0)
            log_t = tl.load(saved_ptr + 3 * step + row, exists, other=0)
            inside = counts & (k < classes)
            offset = sample * (rows * classes) + r * stride_r + k * stride_k
            q, p = probabilities(student_ptr, teacher_ptr, offset, inside, scale, max_s, log_s, max_t, log_t, DTYPE)
            e = tl.where(inside, q - p, 0)
            q = tl.where(inside, q - uniform, 0)
            p = tl.where(inside, p - uniform, 0)
            fresh = tl.sum(counts.to(tl.float64))
            q_mean, q_square = join(q_mean, q_square, q, fresh, count, inside)
            p_mean, p_square = join(p_mean, p_square, p, fresh, count, inside)
            e_mean, e_square = join(e_mean, e_square, e, fresh, count, inside)
            count += fresh
    place = partial_ptr + part * 7 * classes + k
    exists = k < classes
    tl.store(place, q_mean, exists)
    tl.store(place + classes, p_mean, exists)
    tl.store(place + 2 * classes, e_mean, exists)
    tl.store(place + 3 * classes, q_square, exists)
    tl.store(place + 4 * classes, p_square, exists)
    tl.store(place + 5 * classes, e_square, exists)
    tl.store(place + 6 * classes, tl.zeros((1, BLOCK_K), tl.float64) + count, exists)


@triton.jit
def gradient(q, p, k, a_row, b_row, by_class_ptr, classes, inside, uniform):
    """dL / dq of a tile; by_class (3, classes)."""
    a = tl.load(by_class_ptr + k, k < classes, other=0)
    b = tl.load(by_class_ptr + classes + k, k < classes, other=0)
    shift = tl.load(by_class_ptr + 2 * classes + k, k < classes, other=0)
    return tl.where(inside, shift + (q - uniform) * (a + a_row) + (p - uniform) * (b + b_row), 0)


@kernel
def backward_kernel(
    student_ptr, teacher_ptr, ignore_ptr, temperature_ptr,
    by_class_ptr,  # (3, classes), times the gradient
    by_row_ptr,  # (2, rows), times the gradient
    result_ptr,  # (outer, classes, inner)
    samples, rows, tiles, classes,
    PLANES: tl.constexpr, IGNORE: tl.constexpr, DTYPE: tl.constexpr, LOWEST: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    classes = tl.full((), classes, tl.int64)
    rows = tl.full((), rows, tl.int64)
    step = samples * rows
    row, exists, counts, begin_at, stride_k, scale, uniform, max_s, log_s, max_t, log_t = whole_rows(
        student_ptr, teacher_ptr, ignore_ptr, temperature_ptr, rows, tiles, classes,
        PLANES, IGNORE, DTYPE, LOWEST, BLOCK_R, BLOCK_K,
    )  # fmt: skip
    a_row = tl.load(by_row_ptr + row, exists, other=0)
    b_row = tl.load(by_row_ptr + step + row, exists, other=0)
    total = tl.zeros((BLOCK_R, BLOCK_K), DTYPE)
    for begin in range(0, classes, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)[None, :].to(tl.int64)
        inside = counts & (k < classes)
        q, p = probabilities(
            student_ptr, teacher_ptr, begin_at + k * stride_k, inside, scale, max_s, log_s, max_t, log_t, DTYPE
        )  # fmt: skip
        total += q * gradient(q, p, k, a_row, b_row, by_class_ptr, classes, inside, uniform)
    mean = tl.sum(total, 1)[:, None]
    for begin in range(0, classes, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)[None, :].to(tl.int64)
        inside = counts & (k < classes)
        q, p = probabilities(
            student_ptr, teacher_ptr, begin_at + k * stride_k, inside, scale, max_s, log_s, max_t, log_t, DTYPE
        )  # fmt: skip
        grad = gradient(q, p, k, a_row, b_row, by_class_ptr, classes, inside, uniform)
        grad = tl.where(inside, q * (grad - mean) * scale, 0)
        tl.store(result_ptr + begin_at + k * stride_k, grad.to(result_ptr.dtype.element_ty), exists & (k < classes))


def forward(
    student: Tensor, teacher: Tensor, ignore: Tensor | None, temperature: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    student, teacher = student.contiguous(), teacher.contiguous()
    outer, classes, inner = student.shape
    dtype = accumulation_dtype(student.dtype)
    saved, sums = (student.new_empty((n, outer * inner), dtype=dtype) for n in (4, 3))
    given = student, teacher, saved if ignore is None else ignore.contiguous(), temperature
    samples, rows, tiles, tile, constants = _describe(student, ignore)
    lowest = torch.finfo(dtype).min
    launch(
        row_kernel, samples * tiles, student, *given, saved, sums, samples, rows, tiles, classes, LOWEST=lowest,
        **tile, **constants,
    )  # fmt: skip
    sample_parts = min(samples, PARTS)
    row_parts = max(min(triton.cdiv(rows, ROWS), PARTS // max(sample_parts, 1)), 1)
    partial = student.new_empty((sample_parts * row_parts, 7, classes), dtype=torch.float64)
    block_k = min(triton.next_power_of_2(classes), CLASSES // (2 if dtype == torch.float64 else 1))
    launch(
        class_kernel, len(partial) * triton.cdiv(classes, block_k), student, *given, saved, partial,
        samples, rows, classes, row_parts, triton.cdiv(samples, max(sample_parts, 1)),
        triton.cdiv(triton.cdiv(rows, row_parts), ROWS) * ROWS,
        BLOCK_R=ROWS, BLOCK_K=block_k, registers=MOST_REGISTERS, **constants,
    )  # fmt: skip
    counts = partial[:, 6, :1].unsqueeze(1)
    count = counts.sum()
    means = (partial[:, :3] * counts).sum(0) / count.clamp_min(1)
    squares = (partial[:, 3:6] + (partial[:, :3] - means).square() * counts).sum(0)
    distance, by_class = along_rows(means[:2], squares, count, dtype)
    distances, *factors = along_classes(sums[0], sums[1], sums[2], classes)
    if ignore is not None:
        distances = distances.masked_fill(ignore.reshape(-1), 0)
    count = count.clamp_min(1)
    by_row = torch.stack(factors).view(2, outer, 1, inner)
    return (distances.to(torch.float64).sum() / count).to(dtype), distance, by_class, by_row, count.to(dtype)


def backward(
    grad_along_classes: Tensor, grad_along_rows: Tensor, student: Tensor, teacher: Tensor, ignore: Tensor | None,
    temperature: Tensor, by_class: Tensor, by_row: Tensor, count: Tensor,
) -> Tensor:  # fmt: skip
    student, teacher = student.contiguous(), teacher.contiguous()
    result = torch.empty_like(student)
    samples, rows, tiles, tile, constants = _describe(student, ignore)
    launch(
        backward_kernel, samples * tiles, student,
        student, teacher, result if ignore is None else ignore.contiguous(), temperature,
        by_class * grad_along_rows, by_row * (grad_along_classes / count), result, samples, rows, tiles,
        student.shape[1], LOWEST=torch.finfo(by_class.dtype).min, **tile, **constants,
    )  # fmt: skip
    return result


def _describe(x: Tensor, ignore: Tensor | None) -> tuple[int, int, int, dict, dict]:
    """Samples, rows and tiles of each, the tile, and the constants that all kernels have."""
    outer, classes, inner = x.shape
    elements = ELEMENTS // 2 if x.dtype == torch.float64 else ELEMENTS
    if inner == 1:
        samples, rows, block_k = 1, outer, min(triton.next_power_of_2(classes), elements)
    else:
        samples, rows, block_k = outer, inner, elements // min(max(triton.next_power_of_2(inner), 16), elements // 8)
    block_r = elements // block_k
    constants = {
        "PLANES": inner > 1,
        "IGNORE": ignore is not None,
        "DTYPE": tl.float64 if x.dtype == torch.float64 else tl.float32,
    }
    return samples, rows, triton.cdiv(rows, block_r), {"BLOCK_R": block_r, "BLOCK_K": block_k}, constants
