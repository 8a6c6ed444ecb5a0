"""project in Triton.

A program owns tiles of BLOCK_P positions of one sample, and walks through the teachers' channels in steps of BLOCK_D:
the projection of a step is a product on matrix units, the teachers' values are subtracted from it in registers. Up to
64 student channels stay with the program, which then reads student and teachers once, in backward too. More are read
again from the L2 cache, for each step; and backward, which has the gradient of 32 channels at a time in registers,
computes the residual again for each 32. Half values are widened, and float32 is multiplied as three products of tf32
where that is how the hardware multiplies: float32's accuracy on matrix units.

Backward: a program adds up the weight's gradient over its tiles in a place of its own, which stays in the L2 cache; the
places are summed in a fixed order afterwards. There are so few programs that these places are at most 1/40 of the
features (with very small features: FEWEST_PROGRAMS).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shapes import accumulation_dtype, dense, empty_like, is_channels_last
from ..triton_layers import MOST_REGISTERS, aligned, count_valid, kernel, launch, width

PRECISION = "ieee" if torch.version.hip else "tf32x3"
FEWEST_PROGRAMS, MOST_PROGRAMS = 16, 1024  # of backward
PARTIALS_PER_FEATURES = 40


@triton.jit
def at_tile(tile, sizes, lengths_ptr, padded_length, BLOCK_P: tl.constexpr, LENGTHS: tl.constexpr):
    """The tile's sample, its positions, and how many positions of the sample are valid."""
    frames, bands, positions, sample_tiles = sizes
    b = (tile // sample_tiles).to(tl.int64)
    p = (tile % sample_tiles).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    valid = positions
    if LENGTHS:
        valid = count_valid(tl.load(lengths_ptr + b), frames, padded_length) * bands
    return b, p, valid


@triton.jit
def sizes_of(
    frames, bands, sample_tiles, C, D,
    C_WIDTH: tl.constexpr, D_WIDTH: tl.constexpr, F_WIDTH: tl.constexpr, P_WIDTH: tl.constexpr,
):  # fmt: skip
    """(frames, bands, positions, tiles of a sample), C, D. *_WIDTH: what divides C, D, bands and positions."""
    frames = tl.cast(frames, tl.int64)
    bands = aligned(bands, F_WIDTH)
    return (frames, bands, aligned(frames * bands, P_WIDTH), sample_tiles), aligned(C, C_WIDTH), aligned(D, D_WIDTH)


@triton.jit
def block_of(x_ptr, b, channel, channels, p, valid, positions, CHANNELS_LAST: tl.constexpr, DTYPE: tl.constexpr):
    """Values [channel, p] of sample b of a feature; zero where they don't count."""
    offset = channel[:, None] * (1 if CHANNELS_LAST else positions) + p[None, :] * (channels if CHANNELS_LAST else 1)
    inside = (channel < channels)[:, None] & (p < valid)[None, :]
    return tl.load(x_ptr + b * channels * positions + offset, inside, other=0).to(DTYPE)


@triton.jit
def weight_of(weight_ptr, d, c, D, C):
    return tl.load(weight_ptr + d.to(tl.int64)[:, None] * C + c[None, :], (d < D)[:, None] & (c < C)[None, :], other=0)


@triton.jit
def residual_of(
    first, student_ptr, weight_ptr, teacher_ptrs, bias_ptr, attention_ptr, b, d, p, valid, C, D, positions,
    BIAS: tl.constexpr, ATTENTION: tl.constexpr, STUDENT_LAST: tl.constexpr, TEACHER_LAST: tl.constexpr,
    ALL_CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """r [d, p]; `first`: the student's first BLOCK_C channels, which are all of them if ALL_CHANNELS."""
    dtype: tl.constexpr = first.dtype
    block: tl.constexpr = first.shape[0]
    c = tl.arange(0, block)
    r = tl.dot(weight_of(weight_ptr, d, c, D, C), first, input_precision=PRECISION, out_dtype=dtype)
    if not ALL_CHANNELS:
        for start in range(block, C, block):
            s = block_of(student_ptr, b, start + c, C, p, valid, positions, STUDENT_LAST, dtype)
            w = weight_of(weight_ptr, d, start + c, D, C)
            r = tl.dot(w, s, r, input_precision=PRECISION, out_dtype=dtype)
    for j in tl.static_range(len(teacher_ptrs)):
        t = block_of(teacher_ptrs[j], b, d, D, p, valid, positions, TEACHER_LAST, dtype)
        if ATTENTION:
            t *= tl.load(attention_ptr + b * len(teacher_ptrs) + j)
        r -= t
    if BIAS:
        bias = tl.load(bias_ptr + d, d < D, other=0)
        r += tl.where((p < valid)[None, :], bias[:, None], 0)
    return r


@kernel
def forward_kernel(
    student_ptr,
    weight_ptr,  # (D, C)
    teacher_ptrs,
    bias_ptr,  # (D,)
    attention_ptr,  # (B, teachers)
    partial_ptr,  # (tiles,): squared errors
    frames,
    bands,
    sample_tiles,
    C,
    D,
    lengths_ptr,  # (B,)
    padded_length,
    BIAS: tl.constexpr,
    ATTENTION: tl.constexpr,
    LENGTHS: tl.constexpr,
    STUDENT_LAST: tl.constexpr,
    TEACHER_LAST: tl.constexpr,
    ALL_CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
    C_WIDTH: tl.constexpr,
    D_WIDTH: tl.constexpr,
    F_WIDTH: tl.constexpr,
    P_WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    tile = tl.program_id(0)
    dtype: tl.constexpr = partial_ptr.dtype.element_ty
    sizes, C, D = sizes_of(frames, bands, sample_tiles, C, D, C_WIDTH, D_WIDTH, F_WIDTH, P_WIDTH)
    positions = sizes[2]
    b, p, valid = at_tile(tile, sizes, lengths_ptr, padded_length, BLOCK_P, LENGTHS)
    first = block_of(student_ptr, b, tl.arange(0, BLOCK_C), C, p, valid, positions, STUDENT_LAST, dtype)
    squares = tl.zeros((BLOCK_D, BLOCK_P), dtype)
    for start in range(0, D, BLOCK_D):
        r = residual_of(
            first, student_ptr, weight_ptr, teacher_ptrs, bias_ptr, attention_ptr,
            b, start + tl.arange(0, BLOCK_D), p, valid, C, D, positions,
            BIAS, ATTENTION, STUDENT_LAST, TEACHER_LAST, ALL_CHANNELS, PRECISION,
        )  # fmt: skip
        squares += r * r
    tl.store(partial_ptr + tile, tl.sum(squares))


@kernel
def backward_kernel(
    error_grad_ptr,  # (B,)
    student_ptr,
    weight_ptr,
    teacher_ptrs,
    bias_ptr,
    attention_ptr,
    student_grad_ptr,  # laid out as the student
    weight_partial_ptr,  # (programs, D, C)
    bias_partial_ptr,  # (programs, D)
    share_ptr,  # (tiles, teachers): sum r t_j
    frames,
    bands,
    sample_tiles,
    C,
    D,
    tiles,
    programs,
    lengths_ptr,
    padded_length,
    STUDENT: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS_GRAD: tl.constexpr,
    SHARES: tl.constexpr,
    BIAS: tl.constexpr,
    ATTENTION: tl.constexpr,
    LENGTHS: tl.constexpr,
    STUDENT_LAST: tl.constexpr,
    TEACHER_LAST: tl.constexpr,
    ALL_CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
    C_WIDTH: tl.constexpr,
    D_WIDTH: tl.constexpr,
    F_WIDTH: tl.constexpr,
    P_WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = error_grad_ptr.dtype.element_ty
    sizes, C, D = sizes_of(frames, bands, sample_tiles, C, D, C_WIDTH, D_WIDTH, F_WIDTH, P_WIDTH)
    positions = sizes[2]
    first_tile = program * tiles // programs
    for tile in range(first_tile, (program + 1) * tiles // programs):
        b, p, valid = at_tile(tile, sizes, lengths_ptr, padded_length, BLOCK_P, LENGTHS)
        scale = 2 * tl.load(error_grad_ptr + b)
        first = block_of(student_ptr, b, tl.arange(0, BLOCK_C), C, p, valid, positions, STUDENT_LAST, dtype)
        for c_start in range(0, C, BLOCK_C):
            c = c_start + tl.arange(0, BLOCK_C)
            s = first
            if not ALL_CHANNELS:
                s = block_of(student_ptr, b, c, C, p, valid, positions, STUDENT_LAST, dtype)
            student_grad = tl.zeros((BLOCK_C, BLOCK_P), dtype)
            shares = tl.zeros((BLOCK_J,), dtype)
            for d_start in range(0, D, BLOCK_D):
                d = d_start + tl.arange(0, BLOCK_D)
                r = scale * residual_of(
                    first, student_ptr, weight_ptr, teacher_ptrs, bias_ptr, attention_ptr, b, d, p, valid, C, D,
                    positions, BIAS, ATTENTION, STUDENT_LAST, TEACHER_LAST, ALL_CHANNELS, PRECISION,
                )  # fmt: skip
                if STUDENT:
                    w = tl.trans(weight_of(weight_ptr, d, c, D, C))
                    student_grad = tl.dot(w, r, student_grad, input_precision=PRECISION, out_dtype=dtype)
                if WEIGHT:
                    place = weight_partial_ptr + program * D * C + d.to(tl.int64)[:, None] * C + c[None, :]
                    inside = (d < D)[:, None] & (c < C)[None, :]
                    before = tl.load(place, inside & (tile > first_tile), other=0)
                    product = tl.dot(r, tl.trans(s), before, input_precision=PRECISION, out_dtype=dtype)
                    tl.store(place, product, inside)
                if c_start == 0:
                    if BIAS_GRAD:
                        row = bias_partial_ptr + program * D + d
                        sums = tl.load(row, (d < D) & (tile > first_tile), other=0) + tl.sum(r, 1)
                        tl.store(row, sums, d < D)
                    if SHARES:
                        for j in tl.static_range(len(teacher_ptrs)):
                            t = block_of(teacher_ptrs[j], b, d, D, p, valid, positions, TEACHER_LAST, dtype)
                            shares += tl.where(tl.arange(0, BLOCK_J) == j, tl.sum(r * t), 0)
            if STUDENT:
                offset = c[:, None] * (1 if STUDENT_LAST else positions) + p[None, :] * (C if STUDENT_LAST else 1)
                exists = (c < C)[:, None] & (p < positions)[None, :]
                result = student_grad.to(student_grad_ptr.dtype.element_ty)
                tl.store(student_grad_ptr + b * C * positions + offset, result, exists)
            if SHARES and c_start == 0:
                j = tl.arange(0, BLOCK_J)
                tl.store(share_ptr + tile * len(teacher_ptrs) + j, shares, j < len(teacher_ptrs))
        if WEIGHT or BIAS_GRAD:
            tl.debug_barrier()  # the next tile's sums may be continued by other threads


def forward(
    student: Tensor,
    weight: Tensor,
    teachers: list[Tensor],
    bias: Tensor | None,
    attention: Tensor | None,
    lengths: Tensor | None,
    padded_length: int,
) -> Tensor:
    call = _Call(student, weight, teachers, bias, attention, lengths)
    partials = call.weight.new_empty(student.shape[0], call.sample_tiles)
    launch(
        forward_kernel, partials.numel(), student,
        *call.operands, partials, *call.sizes, call.lengths, padded_length, **call.constants,
    )  # fmt: skip
    return partials.sum(1)


def backward(
    grad_errors: Tensor,
    student: Tensor,
    weight: Tensor,
    teachers: list[Tensor],
    bias: Tensor | None,
    attention: Tensor | None,
    lengths: Tensor | None,
    padded_length: int,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = _Call(student, weight, teachers, bias, attention, lengths)
    tiles, (rows, columns) = student.shape[0] * call.sample_tiles, call.weight.shape
    programs = min(tiles, call.most_programs())
    new = call.weight.new_empty
    student_grad = empty_like(call.operands[0]) if needed[0] else student.new_empty(0)
    weight_partials, bias_partials, shares = (
        new(shape) if is_needed else new(0)
        for shape, is_needed in zip(
            ((programs, rows, columns), (programs, rows), (student.shape[0], call.sample_tiles, len(teachers))),
            needed[1:],
            strict=True,
        )
    )
    launch(
        backward_kernel, programs, student,
        grad_errors.to(call.weight.dtype).contiguous(), *call.operands,
        student_grad, weight_partials, bias_partials, shares,
        *call.sizes, tiles, programs, call.lengths, padded_length,
        STUDENT=needed[0], WEIGHT=needed[1], BIAS_GRAD=needed[2], SHARES=needed[3],
        BLOCK_J=triton.next_power_of_2(len(teachers)), registers=MOST_REGISTERS, **call.constants,
    )  # fmt: skip
    return (
        student_grad,
        weight_partials.sum(0) if needed[1] else weight_partials,
        bias_partials.sum(0) if needed[2] else bias_partials,
        -shares.sum(1) if needed[3] else shares,
    )


class _Call:
    """What both kernels take: operands as they are read, sizes, and tiles that suit them."""

    def __init__(self, student, weight, teachers, bias, attention, lengths):
        dtype = accumulation_dtype(student.dtype)
        self.weight = weight.to(dtype).contiguous()
        student, teachers = dense(student), [dense(x) for x in teachers]
        if any(is_channels_last(x) != is_channels_last(teachers[0]) for x in teachers):
            teachers = [x.contiguous() for x in teachers]
        # An unread pointer must still be one.
        parameters = (self.weight if x is None else x.to(dtype).contiguous() for x in (bias, attention))
        self.operands = (student, self.weight, tuple(teachers), *parameters)
        self.lengths = self.weight if lengths is None else lengths.contiguous()

        rows, columns = weight.shape
        bands = student.shape[3] if student.dim() == 4 else 1
        # What the registers hold without spilling, three products of tf32 included.
        most_c = 16 if dtype == torch.float64 else 32 if columns > 64 else 64
        block_c, block_p = max(16, min(triton.next_power_of_2(columns), most_c)), 32
        self.sample_tiles = triton.cdiv(student.shape[2] * bands, block_p)
        self.sizes = (student.shape[2], bands, self.sample_tiles, columns, rows)
        self.constants = {
            "BIAS": bias is not None,
            "ATTENTION": attention is not None,
            "LENGTHS": lengths is not None,
            "STUDENT_LAST": is_channels_last(student),
            "TEACHER_LAST": is_channels_last(teachers[0]),
            "ALL_CHANNELS": block_c >= columns,
            "PRECISION": "ieee" if dtype == torch.float64 else PRECISION,
            "C_WIDTH": width(student, columns),
            "D_WIDTH": width(student, rows),
            "F_WIDTH": width(student, bands),
            "P_WIDTH": width(student, student.shape[2] * bands),
            "BLOCK_D": 16,
            "BLOCK_C": block_c,
            "BLOCK_P": block_p,
            "num_warps": 8 if block_c == 64 or dtype == torch.float64 else 4,
            "num_stages": 1,
        }

    def most_programs(self) -> int:
        """So many that the partial sums of all stay small beside the features."""
        student, weight, teachers, *_ = self.operands
        features = student.nbytes + sum(x.nbytes for x in teachers)
        return max(FEWEST_PROGRAMS, min(MOST_PROGRAMS, features // (PARTIALS_PER_FEATURES * weight.nbytes)))
