"""divergence in Triton.

A program owns BLOCK_R rows and walks through the classes in tiles [BLOCK_R, BLOCK_K]. Each place of the tile keeps
maxima and sums of its own and brings them up to date with one exponential per logit, exp(-|x - maximum|), whichever of
the two is larger; places are joined once, behind the loop, so that it has no barriers. Jensen-Shannon needs the
normalisers first: it reads the rows a second time, unless one tile holds them.

Bytes: forward reads both logits once (jsd: twice, the second time from a cache where it holds the rows) and writes up
to six numbers per row; backward reads both once, those numbers, and writes the gradient. Accumulation: float32, or
float64 for float64; over -inf, NaN and dead rows see the definition in __init__.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shapes import accumulation_dtype
from ..triton_layers import aligned, kernel, launch, width
from . import KINDS, numbers, saved_rows

WARP = 64 if torch.version.hip else 32

MOST_REGISTERS = 168  # of a thread: three blocks per multiprocessor; some kinds would spill at 128


@dataclass(frozen=True)
class Tile:
    """Shape of a program's tile: 16 bytes per thread along the contiguous axis, of both logits.

    samples, rows: a sample's rows are numbered through; rows in memory are one sample. A tile owns rows of one sample.
    Rows along positions, whose number changes with the batch's length, have two shapes: few of them would idle most of
    a large tile. The small one reads 128 bytes of each class, one number per load. So all lengths need three kernels.
    """

    samples: int
    rows: int
    block_r: int
    block_k: int
    width: int  # neighbours that a load takes
    num_warps: int = 4

    @classmethod
    def of(cls, x: Tensor) -> Tile:
        outer, classes, inner = x.shape
        elements = 4 * WARP * 16 // x.element_size()
        if inner == 1:
            block_k = min(triton.next_power_of_2(classes), elements)
            if block_k < elements:  # short rows: what is kept per row takes the registers
                elements = max(4 * 4 * WARP, block_k)
            return cls(1, outer, elements // block_k, block_k, width(x, classes))
        large = inner > elements // 8
        block_r = elements // 4 if large else elements // 16
        return cls(outer, inner, block_r, elements // block_r, width(x, inner) if large else 1)

    @property
    def tiles(self) -> int:
        """Of a sample."""
        return triton.cdiv(self.rows, self.block_r)


@triton.jit
def read(ptr, offset, inside, dtype: tl.constexpr):
    """Logits in `dtype`; -inf, a class that can't occur, where there are none."""
    return tl.load(ptr + offset, inside, other=-float("inf")).to(dtype)


@triton.jit
def grow(x, largest, total, scale):
    """Maximum and sum with x among them; the factor that the old sum took, and x's own weight."""
    weight = tl.exp(-tl.abs(x - largest) * scale)
    above = x > largest
    factor = tl.where(above, weight, 1.0)
    own = tl.where(above, 1.0, weight)
    return tl.where(above, x, largest), total * factor + own, factor, own


@triton.jit
def join(largest, total, scale):
    """Maximum and sum of each row (BLOCK_R, 1) from those of places, and the factor that a place's sums take."""
    most = tl.max(largest, 1)[:, None]
    factor = tl.exp((largest - most) * scale)
    return most, tl.sum(total * factor, 1)[:, None], factor


@triton.jit
def probabilities(s, t, max_s, log_s, max_t, log_t, scale):
    """q, p and log(q / p)."""
    below_s = (s - max_s) * scale
    below_t = (t - max_t) * scale
    return tl.exp(below_s - log_s), tl.exp(below_t - log_t), (below_s - below_t) - (log_s - log_t)


@triton.jit
def of_mixture(q, p, log_ratio, beta, LEAST: tl.constexpr):
    """log(q / m) and log(p / m); each where its own probability is not zero."""
    mixture = beta * p + (1 - beta) * q
    mixture = tl.where(mixture < LEAST, LEAST, mixture)
    log_most = tl.log(tl.where(p >= q, p, q) / mixture)
    return tl.where(p >= q, log_most + log_ratio, log_most), tl.where(p >= q, log_most, log_most - log_ratio)


@triton.jit
def times(weight, x):
    """weight x, 0 where the weight is."""
    return tl.where(weight == 0, 0.0, weight * x)


@triton.jit
def laid_out(rows, classes, PLANES: tl.constexpr, WIDTH: tl.constexpr):
    """Rows of a sample and classes, and the strides of samples, rows and classes."""
    if PLANES:
        rows = aligned(rows, WIDTH)
        return rows, classes, rows * classes, 1, rows
    else:
        classes = aligned(classes, WIDTH)
        return rows, classes, 0, classes, 1


@kernel
def forward_kernel(
    student_ptr,  # (samples, classes, rows) with PLANES, else (rows, classes)
    teacher_ptr,
    ignore_ptr,  # (samples * rows,)
    value_ptr,  # (samples * rows,)
    saved_ptr,  # (numbers, samples * rows)
    rows,  # of a sample
    tiles,  # of a sample
    all_rows: tl.int64,
    classes,
    inverse_temperature: tl.float64,
    beta: tl.float64,
    KIND: tl.constexpr,  # kl, reverse_kl, jsd
    PLANES: tl.constexpr,  # rows lie along positions, classes apart
    IGNORE: tl.constexpr,
    SAVE: tl.constexpr,
    ONE_TILE: tl.constexpr,  # holds all classes
    DTYPE: tl.constexpr,
    LEAST: tl.constexpr,  # normal positive number
    LOWEST: tl.constexpr,  # finite number
    WIDTH: tl.constexpr,  # divides what lies together: rows of a sample or classes
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    rows, classes, stride_sample, stride_r, stride_k = laid_out(rows, classes, PLANES, WIDTH)
    program = tl.program_id(0)
    sample = (program // tiles).to(tl.int64)
    r = (program % tiles).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    row = sample * rows + r
    exists = r < rows
    ignored = r < 0
    if IGNORE:
        ignored = tl.load(ignore_ptr + row, exists, other=1) != 0
    # Of rows in memory, those that are ignored aren't read; lanes that lie along positions read 16 bytes with others.
    counts = exists if PLANES else exists & ~ignored
    scale = tl.full((), inverse_temperature, DTYPE)
    first = sample * stride_sample + r[:, None] * stride_r
    infinity = float("inf")

    # x weighs against y.
    x_ptr = student_ptr if KIND == "reverse_kl" else teacher_ptr
    y_ptr = teacher_ptr if KIND == "reverse_kl" else student_ptr
    max_x = tl.full((BLOCK_R, BLOCK_K), LOWEST, DTYPE)
    max_y = tl.full((BLOCK_R, BLOCK_K), LOWEST, DTYPE)
    sum_x = tl.zeros((BLOCK_R, BLOCK_K), DTYPE)
    sum_y = tl.zeros((BLOCK_R, BLOCK_K), DTYPE)
    cross = tl.zeros((BLOCK_R, BLOCK_K), DTYPE)  # sum of e^(x - max_x) ((x - max_x) - (y - max_y))
    missing = tl.zeros((BLOCK_R, BLOCK_K), DTYPE)
    x = max_x
    y = max_y
    for begin in range(0, classes, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)
        offset = first + k[None, :].to(tl.int64) * stride_k
        inside = counts[:, None] & (k < classes)[None, :]
        x = read(x_ptr, offset, inside, DTYPE)
        y = read(y_ptr, offset, inside, DTYPE)
        new_x, new_sum, factor, own = grow(x, max_x, sum_x, scale)
        new_y, sum_y, _, _ = grow(y, max_y, sum_y, scale)
        if KIND != "jsd":
            # Without a sum the old maximum is no logit, and its distance may be infinite.
            moved = tl.where(sum_x > 0, (cross + sum_x * ((max_x - new_x) - (max_y - new_y))) * factor, 0.0)
            cross = moved + tl.where(own > 0, own * ((x - new_x) - (y - new_y)), 0.0)
            missing = tl.where((y == -infinity) & (x > -infinity), 1.0, missing)
        max_x = new_x
        sum_x = new_sum
        max_y = new_y

    most_x, total_x, factor = join(max_x, sum_x, scale)
    most_y, total_y, _ = join(max_y, sum_y, scale)
    dead = (total_x == 0) | (total_y == 0) | ignored[:, None]
    total_x = tl.where(dead, 1.0, total_x)
    total_y = tl.where(dead, 1.0, total_y)
    log_x = tl.where(dead, infinity, tl.log(total_x))
    log_y = tl.where(dead, infinity, tl.log(total_y))
    if KIND != "jsd":
        moved = tl.where(sum_x > 0, (cross + sum_x * ((max_x - most_x) - (max_y - most_y))) * factor, 0.0)
        value = tl.sum(moved, 1)[:, None] / total_x * scale - (log_x - log_y)
        lost = tl.max(missing, 1)[:, None] > 0
        value = tl.where(lost, infinity + 0.0 * (total_x + total_y), value)
        of_y = value
    else:
        sum_p = tl.zeros((BLOCK_R, BLOCK_K), DTYPE)
        sum_q = tl.zeros((BLOCK_R, BLOCK_K), DTYPE)
        share = tl.full((), beta, DTYPE)
        for begin in range(0, classes, BLOCK_K):
            if not ONE_TILE:
                k = begin + tl.arange(0, BLOCK_K)
                offset = first + k[None, :].to(tl.int64) * stride_k
                inside = counts[:, None] & (k < classes)[None, :]
                x = read(x_ptr, offset, inside, DTYPE)
                y = read(y_ptr, offset, inside, DTYPE)
            q, p, log_ratio = probabilities(y, x, most_y, log_y, most_x, log_x, scale)
            log_q, log_p = of_mixture(q, p, log_ratio, share, LEAST)
            sum_p += times(p, log_p)
            sum_q += times(q, log_q)
        of_y = tl.sum(sum_q, 1)[:, None]
        value = share * tl.sum(sum_p, 1)[:, None] + (1 - share) * of_y
    value = tl.where(dead | (value < 0), 0.0, value)
    place = row[:, None]
    tl.store(value_ptr + place, value, exists[:, None])
    if SAVE:
        max_x = tl.where(dead, 0.0, most_x)
        max_y = tl.where(dead, 0.0, most_y)
        of_x: tl.constexpr = 0 if KIND == "reverse_kl" else 2
        saved_ptr += place
        step = aligned(all_rows, WIDTH if PLANES else 1)
        tl.store(saved_ptr + of_x * step, max_x, exists[:, None])
        tl.store(saved_ptr + (of_x + 1) * step, log_x, exists[:, None])
        tl.store(saved_ptr + (2 - of_x) * step, max_y, exists[:, None])
        tl.store(saved_ptr + (3 - of_x) * step, log_y, exists[:, None])
        if KIND != "kl":
            tl.store(saved_ptr + 4 * step, tl.where(dead | (of_y < 0), 0.0, of_y), exists[:, None])


@kernel
def backward_kernel(
    value_grad_ptr,  # (samples * rows,)
    student_ptr,
    teacher_ptr,
    saved_ptr,
    result_ptr,  # laid out as student
    rows,
    tiles,
    all_rows: tl.int64,
    classes,
    inverse_temperature: tl.float64,
    beta: tl.float64,
    KIND: tl.constexpr,
    PLANES: tl.constexpr,
    DTYPE: tl.constexpr,
    LEAST: tl.constexpr,
    WIDTH: tl.constexpr,  # divides what lies together: rows of a sample or classes
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    rows, classes, stride_sample, stride_r, stride_k = laid_out(rows, classes, PLANES, WIDTH)
    program = tl.program_id(0)
    sample = (program // tiles).to(tl.int64)
    r = (program % tiles).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    row = (sample * rows + r)[:, None]
    exists = (r < rows)[:, None]
    first = sample * stride_sample + r[:, None] * stride_r
    step = aligned(all_rows, WIDTH if PLANES else 1)
    scale = tl.full((), inverse_temperature, DTYPE)
    share = tl.full((), beta, DTYPE)
    max_s = tl.load(saved_ptr + row, exists, other=0)
    log_s = tl.load(saved_ptr + step + row, exists, other=0)
    max_t = tl.load(saved_ptr + 2 * step + row, exists, other=0)
    log_t = tl.load(saved_ptr + 3 * step + row, exists, other=0)
    dead = log_s == float("inf")
    grad = tl.load(value_grad_ptr + row, exists, other=0) * scale
    if KIND != "kl":
        moment = tl.load(saved_ptr + 4 * step + row, exists, other=0)
    for begin in range(0, classes, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)
        offset = first + k[None, :].to(tl.int64) * stride_k
        inside = exists & (k < classes)[None, :]
        counts = inside if PLANES else inside & ~dead
        s = read(student_ptr, offset, counts, DTYPE)
        t = read(teacher_ptr, offset, counts, DTYPE)
        q, p, log_ratio = probabilities(s, t, max_s, log_s, max_t, log_t, scale)
        if KIND == "kl":
            result = (q - p) * grad
        elif KIND == "reverse_kl":
            result = times(q, log_ratio - moment) * grad
        else:
            log_q, _ = of_mixture(q, p, log_ratio, share, LEAST)
            result = times(q, log_q - moment) * (grad * (1 - share))
        result = tl.where(dead, 0.0, result)
        tl.store(result_ptr + offset, result.to(result_ptr.dtype.element_ty), inside)


def forward(
    student: Tensor, teacher: Tensor, ignore: Tensor | None, kind: int, beta: float, temperature: float,
    options: Tensor | None, gradients: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    beta, temperature = numbers(beta, temperature, options)
    student, teacher = student.contiguous(), teacher.contiguous()
    rows, dtype = student.shape[0] * student.shape[2], accumulation_dtype(student.dtype)
    values = student.new_empty((rows,), dtype=dtype)
    saved = student.new_empty((saved_rows(kind), rows) if gradients else (0,), dtype=dtype)
    tile, sizes, constants = _describe(student, kind)
    launch(
        forward_kernel, tile.samples * tile.tiles, student,
        student, teacher, values if ignore is None else ignore.contiguous(),  # an unread pointer must still be one
        values, saved if gradients else values, *sizes, 1 / temperature, beta,
        IGNORE=ignore is not None, SAVE=gradients, ONE_TILE=student.shape[1] <= tile.block_k,
        LOWEST=torch.finfo(dtype).min, **constants,
    )  # fmt: skip
    return values, saved


def backward(
    value_grads: Tensor, student: Tensor, teacher: Tensor, saved: Tensor, kind: int, beta: float, temperature: float,
    options: Tensor | None,
) -> Tensor:  # fmt: skip
    beta, temperature = numbers(beta, temperature, options)
    student, teacher = student.contiguous(), teacher.contiguous()
    result = torch.empty_like(student)
    tile, sizes, constants = _describe(student, kind)
    launch(
        backward_kernel, tile.samples * tile.tiles, student,
        value_grads.to(saved.dtype).contiguous(), student, teacher, saved.contiguous(), result, *sizes,
        1 / temperature, beta, **constants,
    )  # fmt: skip
    return result


def _describe(x: Tensor, kind: int) -> tuple[Tile, tuple[int, ...], dict]:
    """The tile, the kernels' sizes, and the constants that both have."""
    outer, classes, inner = x.shape
    tile, double = Tile.of(x), x.dtype == torch.float64
    constants = {
        "KIND": KINDS[kind],
        "PLANES": inner > 1,
        "DTYPE": tl.float64 if double else tl.float32,
        "LEAST": torch.finfo(accumulation_dtype(x.dtype)).tiny,
        "WIDTH": tile.width,
        "BLOCK_R": tile.block_r,
        "BLOCK_K": tile.block_k,
        "num_warps": tile.num_warps,
        "registers": MOST_REGISTERS,
    }
    return tile, (tile.rows, tile.tiles, outer * inner, classes), constants
