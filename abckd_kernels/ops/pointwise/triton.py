"""pointwise in Triton.

A program owns BLOCK_C channels and STEPS * BLOCK_P positions of one sample and walks through the positions in tiles
[BLOCK_C, BLOCK_P]: values add up elementwise in registers and are reduced over positions once, behind the loop. The
sums of the programs of a channel are written and added up by a second, small launch in a fixed order; where a channel
has one program only, its sums are the result.

Bytes per element, for one or two operands beside the student: forward reads 2 (3), and writes one value per
STEPS * BLOCK_P; backward reads 2 (3) and writes 1 (2). Accumulation: float32, or float64 for float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shapes import accumulation_dtype, dense, empty_like, is_channels_last
from ..triton_layers import aligned, count_valid, kernel, launch, registers_of_backward, width

WARP = 64 if torch.version.hip else 32
STEPS = 8  # tiles of a program


@dataclass(frozen=True)
class Tile:
    """Shape of a program's tile: 16 bytes per thread along the contiguous axis, two loads of each operand in flight."""

    block_c: int
    block_p: int
    num_warps: int = 4

    @classmethod
    def of(cls, x: Tensor) -> Tile:
        warp_row = WARP * 16 // x.element_size()  # elements that one warp reads at once
        if is_channels_last(x):
            block_c = min(triton.next_power_of_2(x.shape[1]), warp_row)
            return cls(block_c, 8 * warp_row // block_c)
        return cls(8, warp_row)


# Comparisons are such that what is not a number stays that.


@triton.jit
def raised(base, exponent, FACTORS: tl.constexpr):
    """base >= 0 to a power: FACTORS if that is not negative, else `exponent`."""
    if FACTORS >= 0:
        result = tl.full(base.shape, 1, base.dtype)
        for _ in tl.static_range(FACTORS):
            result *= base
        return result
    else:
        return tl.exp(exponent * tl.log(base))


@triton.jit
def positive(x):
    return tl.where(x < 0, 0.0, x)


@triton.jit
def boundary_miss(s, t, x):
    return positive(tl.where(t > 0, x - s, s + x))


@triton.jit
def margin_distance(s, t, m):
    target = tl.where(t < m, m, t)
    return tl.where(t > 0, s - target, tl.where(s <= target, 0.0, s - target))


@triton.jit
def variance(third, x):
    """exp(third), and one over the variance."""
    exponential = tl.exp(tl.where(third > 80, 80.0, third))
    return exponential, 1 / (x + exponential)


@triton.jit
def value(s, t, third, m, x, KIND: tl.constexpr, FACTORS: tl.constexpr):
    d = s - t
    if KIND == "squared":
        return d * d
    elif KIND == "power":
        return raised(tl.abs(d), x, FACTORS)
    elif KIND == "rectified":
        d = positive(s) - t
        return d * d
    elif KIND == "boundary":
        miss = boundary_miss(s, t, x)
        return miss * miss
    elif KIND == "margin":
        distance = margin_distance(s, t, m)
        return distance * distance
    else:
        exponential, inverse = variance(third, x)
        return d * d * inverse + third


@triton.jit
def slopes(s, t, third, m, x, KIND: tl.constexpr, FACTORS: tl.constexpr):
    """df/ds and df/dthird, the latter a copy of the former where the kind has no third."""
    d = s - t
    if KIND == "squared":
        slope = 2 * d
        return slope, slope
    elif KIND == "power":
        magnitude = x * raised(tl.abs(d), x - 1, FACTORS - 1 if FACTORS > 0 else FACTORS)
        slope = tl.where(d == 0, 0.0, tl.where(d < 0, -magnitude, magnitude))
        return slope, slope
    elif KIND == "rectified":
        slope = tl.where(s <= 0, 0.0, 2 * d)
        return slope, slope
    elif KIND == "boundary":
        miss = boundary_miss(s, t, x)
        slope = tl.where(t > 0, -2 * miss, 2 * miss)
        return slope, slope
    elif KIND == "margin":
        slope = 2 * margin_distance(s, t, m)
        return slope, slope
    else:
        exponential, inverse = variance(third, x)
        return 2 * d * inverse, 1 - d * d * inverse * (exponential * inverse)


@triton.jit
def locate(
    C, T, F, groups, chunks, lengths_ptr, padded_length, LENGTHS: tl.constexpr, BLOCK_C: tl.constexpr,
    C_WIDTH: tl.constexpr, F_WIDTH: tl.constexpr, P_WIDTH: tl.constexpr,
):  # fmt: skip
    """The program's sample, its number among the sample's chunks, its channels, C, the positions and the valid ones.

    *_WIDTH: what divides C, F and positions.
    """
    program = tl.program_id(0)
    b = (program // (groups * chunks)).to(tl.int64)
    chunk = (program // groups % chunks).to(tl.int64)
    c = (program % groups).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    frames = tl.cast(T, tl.int64)
    F = aligned(F, F_WIDTH)
    positions = aligned(frames * F, P_WIDTH)
    valid = positions
    if LENGTHS:
        valid = count_valid(tl.load(lengths_ptr + b), frames, padded_length) * F
    return b, chunk, c, aligned(C, C_WIDTH), positions, valid


@kernel
def forward_kernel(
    s_ptr,  # (B, C, T * F), or (B, T * F, C) with CHANNELS_LAST
    t_ptr,
    third_ptr,
    per_channel_ptr,  # (C,)
    sums_ptr,  # (B, chunks, C)
    C,
    T,
    F,
    groups,  # of BLOCK_C channels
    chunks,  # of STEPS * BLOCK_P positions
    x: tl.float64,
    lengths_ptr,  # (B,)
    padded_length,
    KIND: tl.constexpr,
    FACTORS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    LENGTHS: tl.constexpr,
    C_WIDTH: tl.constexpr,
    F_WIDTH: tl.constexpr,
    P_WIDTH: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    STEPS: tl.constexpr,
):
    b, chunk, c, C, positions, valid = locate(
        C, T, F, groups, chunks, lengths_ptr, padded_length, LENGTHS, BLOCK_C, C_WIDTH, F_WIDTH, P_WIDTH
    )
    dtype: tl.constexpr = sums_ptr.dtype.element_ty
    x = tl.full((), x, dtype)
    m = tl.zeros((BLOCK_C, 1), dtype)
    if KIND == "margin":
        m = tl.load(per_channel_ptr + c, c < C, other=0).to(dtype)[:, None]
    stride_c = 1 if CHANNELS_LAST else positions
    stride_p = C if CHANNELS_LAST else 1
    s_ptr += b * C * positions
    t_ptr += b * C * positions
    third_ptr += b * C * positions

    total = tl.zeros((BLOCK_C, BLOCK_P), dtype)
    for step in range(STEPS):
        p = (chunk * STEPS + step) * BLOCK_P + tl.arange(0, BLOCK_P)
        offset = c[:, None] * stride_c + p[None, :] * stride_p
        inside = (c < C)[:, None] & (p < valid)[None, :]
        s = tl.load(s_ptr + offset, inside, other=0).to(dtype)
        t = tl.load(t_ptr + offset, inside, other=0).to(dtype)
        third = s
        if KIND == "heteroscedastic":
            third = tl.load(third_ptr + offset, inside, other=0).to(dtype)
        total += tl.where(inside, value(s, t, third, m, x, KIND, FACTORS), 0.0)
    tl.store(sums_ptr + (b * chunks + chunk) * C + c, tl.sum(total, 1), c < C)


@kernel
def add_kernel(partial_ptr, sums_ptr, C, chunks, groups, C_WIDTH: tl.constexpr, BLOCK_C: tl.constexpr):
    program = tl.program_id(0)
    C = aligned(C, C_WIDTH)
    b = (program // groups).to(tl.int64)
    c = (program % groups).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C,), sums_ptr.dtype.element_ty)
    for chunk in range(0, chunks):
        total += tl.load(partial_ptr + (b * chunks + chunk) * C + c, c < C, other=0)
    tl.store(sums_ptr + b * C + c, total, c < C)


@kernel
def backward_kernel(
    grad_ptr,  # (B, C)
    s_ptr,
    t_ptr,
    third_ptr,
    per_channel_ptr,
    s_result_ptr,  # laid out as s
    third_result_ptr,
    C,
    T,
    F,
    groups,
    chunks,
    x: tl.float64,
    lengths_ptr,
    padded_length,
    KIND: tl.constexpr,
    FACTORS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    LENGTHS: tl.constexpr,
    C_WIDTH: tl.constexpr,
    F_WIDTH: tl.constexpr,
    P_WIDTH: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    STEPS: tl.constexpr,
):
    b, chunk, c, C, positions, valid = locate(
        C, T, F, groups, chunks, lengths_ptr, padded_length, LENGTHS, BLOCK_C, C_WIDTH, F_WIDTH, P_WIDTH
    )
    dtype: tl.constexpr = grad_ptr.dtype.element_ty
    x = tl.full((), x, dtype)
    m = tl.zeros((BLOCK_C, 1), dtype)
    if KIND == "margin":
        m = tl.load(per_channel_ptr + c, c < C, other=0).to(dtype)[:, None]
    stride_c = 1 if CHANNELS_LAST else positions
    stride_p = C if CHANNELS_LAST else 1
    s_ptr += b * C * positions
    t_ptr += b * C * positions
    third_ptr += b * C * positions
    s_result_ptr += b * C * positions
    third_result_ptr += b * C * positions
    grad = tl.load(grad_ptr + b * C + c, c < C, other=0)[:, None]

    for step in range(STEPS):
        p = (chunk * STEPS + step) * BLOCK_P + tl.arange(0, BLOCK_P)
        offset = c[:, None] * stride_c + p[None, :] * stride_p
        exists = (c < C)[:, None] & (p < positions)[None, :]
        counts = (c < C)[:, None] & (p < valid)[None, :]
        s = tl.load(s_ptr + offset, counts, other=0).to(dtype)
        t = tl.load(t_ptr + offset, counts, other=0).to(dtype)
        third = s
        if KIND == "heteroscedastic":
            third = tl.load(third_ptr + offset, counts, other=0).to(dtype)
        of_s, of_third = slopes(s, t, third, m, x, KIND, FACTORS)
        of_s = tl.where(counts, grad * of_s, 0.0)
        tl.store(s_result_ptr + offset, of_s.to(s_result_ptr.dtype.element_ty), exists)
        if KIND == "heteroscedastic":
            of_third = tl.where(counts, grad * of_third, 0.0)
            tl.store(third_result_ptr + offset, of_third.to(third_result_ptr.dtype.element_ty), exists)


def forward(
    student: Tensor,
    teacher: Tensor,
    third: Tensor | None,
    per_channel: Tensor | None,
    kind: str,
    parameter: float,
    lengths: Tensor | None,
    padded_length: int,
) -> Tensor:
    s = dense(student)
    batch, channels = s.shape[:2]
    tile = Tile.of(s)
    programs, sizes, constants = _plan(s, tile, kind, parameter, lengths)
    chunks = sizes[-1]
    partial = s.new_empty((batch, chunks, channels), dtype=accumulation_dtype(s.dtype))
    launch(
        forward_kernel, programs, s,
        *_operands(s, teacher, third, per_channel), partial, *sizes, parameter,
        partial if lengths is None else lengths.contiguous(), padded_length, **constants,
    )  # fmt: skip
    if chunks == 1:
        return partial[:, 0]
    sums = s.new_empty((batch, channels), dtype=partial.dtype)
    groups = triton.cdiv(channels, 4 * WARP)
    launch(
        add_kernel, batch * groups, s,
        partial, sums, channels, chunks, groups, C_WIDTH=width(sums, channels), BLOCK_C=4 * WARP, num_warps=1,
    )  # fmt: skip
    return sums


def backward(
    grad: Tensor,
    student: Tensor,
    teacher: Tensor,
    third: Tensor | None,
    per_channel: Tensor | None,
    kind: str,
    parameter: float,
    lengths: Tensor | None,
    padded_length: int,
) -> tuple[Tensor, Tensor]:
    s = dense(student)
    grad = grad.to(accumulation_dtype(s.dtype)).contiguous()
    programs, sizes, constants = _plan(s, Tile.of(s), kind, parameter, lengths)
    results = empty_like(s), s.new_empty(0) if third is None else empty_like(s)
    launch(
        backward_kernel, programs, s,
        grad, *_operands(s, teacher, third, per_channel), *results, *sizes, parameter,
        grad if lengths is None else lengths.contiguous(), padded_length, **constants,
        registers=registers_of_backward(constants, constants["CHANNELS_LAST"]),
    )  # fmt: skip
    return results


def _operands(s: Tensor, teacher: Tensor, third: Tensor | None, per_channel: Tensor | None) -> tuple[Tensor, ...]:
    """s and the others as it lies; a pointer that is not read must still be one."""
    teacher, third = (s if x is None else _laid_out(x, s) for x in (teacher, third))
    return s, teacher, third, s if per_channel is None else per_channel.contiguous()


def _laid_out(x: Tensor, like: Tensor) -> Tensor:
    """`x` as it is if it lies in memory exactly as `like` does, else a copy that does."""
    return x if x.dtype == like.dtype and x.stride() == like.stride() else empty_like(like).copy_(x)


def _plan(s: Tensor, tile: Tile, kind: str, parameter: float, lengths: Tensor | None) -> tuple[int, tuple, dict]:
    """Number of programs, (C, T, F, groups, chunks), and the kernels' constants."""
    bands = s.shape[3] if s.dim() == 4 else 1
    groups = triton.cdiv(s.shape[1], tile.block_c)
    chunks = triton.cdiv(s.shape[2] * bands, STEPS * tile.block_p)
    whole = parameter == int(parameter) and parameter <= 8
    constants = {
        "KIND": kind,
        "FACTORS": (int(parameter) if whole else -1) if kind == "power" else 0,
        "CHANNELS_LAST": is_channels_last(s),
        "LENGTHS": lengths is not None,
        "C_WIDTH": width(s, s.shape[1]),
        "F_WIDTH": width(s, bands),
        "P_WIDTH": width(s, s.shape[2] * bands),
        "BLOCK_C": tile.block_c,
        "BLOCK_P": tile.block_p,
        "STEPS": STEPS,
        "num_warps": tile.num_warps,
    }
    return s.shape[0] * groups * chunks, (s.shape[1], s.shape[2], bands, groups, chunks), constants
