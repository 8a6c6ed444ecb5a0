"""spectral in Triton.

A program owns BLOCK numbers, re and im in turns, of one sample as they lie in memory. They are loaded as one row, so
that a thread gets 16 bytes at a time, and split into re and im in registers. Blocks begin at multiples of ALIGNED
numbers from the tensor's first one, wherever samples begin; those that lie within one sample's valid bins are read
without a mask, which would forbid wide loads where sizes are odd.

Bytes per number: forward reads both spectra once and writes two sums per block, which a second, small launch adds in a
fixed order; backward reads both once and writes the gradient once. Accumulation: float32, or float64 for float64.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shapes import accumulation_dtype
from ..triton_layers import aligned, count_valid, kernel, launch, width
from . import spectra

WARPS = 4
ALIGNED = tl.constexpr(16)
SUMS_AT_ONCE = 256  # blocks of a sample


@triton.jit
def locate(
    numbers, frames, inner, lengths_ptr, padded_length, blocks,
    LENGTHS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sample b; the block's first number, counted from the tensor's and from b's own; those that exist; those that
    count; the valid bins of a run and its length; whether all of the block's numbers count."""
    numbers = aligned(numbers, WIDTH)
    block = tl.program_id(0)
    b = (block // blocks).to(tl.int64)
    sample = b * numbers
    begin = sample // ALIGNED * ALIGNED + (block % blocks).to(tl.int64) * BLOCK
    number = begin - sample + tl.arange(0, BLOCK)
    exists = (number >= 0) & (number < numbers)
    whole = (begin >= sample) & (begin + BLOCK <= sample + numbers)
    counts = exists
    run = frames * inner * 2
    valid = run
    if LENGTHS:
        valid = count_valid(tl.load(lengths_ptr + b), frames, padded_length) * inner * 2
        first_in_run = (begin - sample) % run
        whole = whole & ((valid == run) | (first_in_run + BLOCK <= valid))
        counts = exists & (number % run < valid)
    return b, begin, exists, counts, valid, run, whole


@triton.jit
def load_pairs(ptr, offset, counts, whole, BLOCK: tl.constexpr, DOUBLE: tl.constexpr):
    """re and im, (BLOCK / 2,) each."""
    if whole:
        x = tl.load(ptr + offset)
    else:
        x = tl.load(ptr + offset, counts, other=0)
    return tl.split(tl.reshape(x.to(tl.float64 if DOUBLE else tl.float32), (BLOCK // 2, 2)))


@triton.jit
def compress(re, im, exponent, eps):
    """Squared magnitude, m^c and m^(c-1)."""
    power = re * re + im * im + eps
    log = tl.log2(power)
    return power, tl.exp2(log * (0.5 * exponent)), tl.exp2(log * (0.5 * exponent - 0.5))


@triton.jit
def difference(s, factor, t, to_factor):
    """s m_s^(c-1) - t m_t^(c-1) of re or im, as (s - t) times the smaller factor and the rest: near s = t no digits are
    lost, and at s = t it is zero even if products are fused with sums."""
    student_is_smaller = factor < to_factor
    common = tl.where(student_is_smaller, factor, to_factor)
    return (s - t) * common + tl.where(student_is_smaller, t, s) * (factor - to_factor)


@kernel
def forward_kernel(
    student_ptr,
    teacher_ptr,
    partial_ptr,  # (B, blocks, 2): sums of magnitude and complex errors
    numbers: tl.int64,  # of a sample: twice its bins
    frames: tl.int64,
    inner: tl.int64,  # a run is frames * inner neighbouring bins, inner of each frame
    lengths_ptr,  # (B,)
    padded_length,
    exponent: tl.float64,
    eps: tl.float64,
    blocks,  # per sample
    LENGTHS: tl.constexpr,
    WIDTH: tl.constexpr,  # divides numbers
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    b, begin, exists, counts, valid, run, whole = locate(
        numbers, frames, inner, lengths_ptr, padded_length, blocks, LENGTHS, WIDTH, BLOCK
    )
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    exponent, eps = tl.full((), exponent, dtype), tl.full((), eps, dtype)
    offset = begin + tl.arange(0, BLOCK)
    re, im = load_pairs(student_ptr, offset, counts, whole, BLOCK, DOUBLE)
    to_re, to_im = load_pairs(teacher_ptr, offset, counts, whole, BLOCK, DOUBLE)
    _, magnitude, factor = compress(re, im, exponent, eps)
    _, to_magnitude, to_factor = compress(to_re, to_im, exponent, eps)
    # Numbers that do not count are zero in both spectra.
    magnitude -= to_magnitude
    re = difference(re, factor, to_re, to_factor)
    im = difference(im, factor, to_im, to_factor)
    place = partial_ptr + tl.program_id(0).to(tl.int64) * 2
    tl.store(place, tl.sum(magnitude * magnitude))
    tl.store(place + 1, tl.sum(re * re + im * im))


@kernel
def mean_kernel(
    partial_ptr,
    magnitude_ptr,  # (B,)
    complex_ptr,  # (B,)
    numbers: tl.int64,
    frames: tl.int64,
    lengths_ptr,
    padded_length,
    blocks,
    LENGTHS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = magnitude_ptr.dtype.element_ty
    magnitude, pair = tl.zeros((BLOCK,), dtype), tl.zeros((BLOCK,), dtype)
    for first in range(0, blocks, BLOCK):
        block = first + tl.arange(0, BLOCK)
        place = partial_ptr + (b * blocks + block) * 2
        magnitude += tl.load(place, block < blocks, other=0)
        pair += tl.load(place + 1, block < blocks, other=0)
    bins = tl.cast(numbers // 2, tl.int64)
    if LENGTHS:
        bins = bins // frames * count_valid(tl.load(lengths_ptr + b), frames, padded_length)
    bins = tl.where(bins > 0, bins, 1).to(dtype)
    tl.store(magnitude_ptr + b, tl.sum(magnitude) / bins)
    tl.store(complex_ptr + b, tl.sum(pair) / bins)


@kernel
def backward_kernel(
    student_ptr,
    teacher_ptr,
    magnitude_grad_ptr,  # (B,)
    complex_grad_ptr,  # (B,)
    result_ptr,  # laid out as student
    numbers: tl.int64,  # as in forward_kernel
    frames: tl.int64,
    inner: tl.int64,
    lengths_ptr,
    padded_length,
    exponent: tl.float64,
    eps: tl.float64,
    blocks,
    LENGTHS: tl.constexpr,
    WIDTH: tl.constexpr,  # divides numbers
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    b, begin, exists, counts, valid, run, whole = locate(
        numbers, frames, inner, lengths_ptr, padded_length, blocks, LENGTHS, WIDTH, BLOCK
    )
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    exponent, eps = tl.full((), exponent, dtype), tl.full((), eps, dtype)
    bins = numbers // run * (valid // 2)
    scale = 2 / tl.where(bins > 0, bins, 1).to(dtype)
    by_magnitude = tl.load(magnitude_grad_ptr + b) * scale * exponent
    by_pair = tl.load(complex_grad_ptr + b) * scale

    offset = begin + tl.arange(0, BLOCK)
    re, im = load_pairs(student_ptr, offset, counts, whole, BLOCK, DOUBLE)
    to_re, to_im = load_pairs(teacher_ptr, offset, counts, whole, BLOCK, DOUBLE)
    power, magnitude, factor = compress(re, im, exponent, eps)
    _, to_magnitude, to_factor = compress(to_re, to_im, exponent, eps)
    error_re = difference(re, factor, to_re, to_factor)
    error_im = difference(im, factor, to_im, to_factor)
    # What multiplies the student's own bin; the products stay in range at silence, where power is as small as eps.
    along = by_magnitude * (magnitude - to_magnitude) * magnitude
    along = (along + by_pair * (exponent - 1) * factor * (re * error_re + im * error_im)) / power
    factor *= by_pair
    result = tl.join(along * re + factor * error_re, along * im + factor * error_im)
    result = tl.reshape(result, (BLOCK,))
    if result_ptr.dtype.element_ty == tl.float16:  # infinity would spoil a whole step
        result = tl.clamp(result, -65504.0, 65504.0, propagate_nan=tl.PropagateNan.ALL)
    result = result.to(result_ptr.dtype.element_ty)
    if whole:
        tl.store(result_ptr + offset, result)
    else:
        tl.store(result_ptr + offset, result, exists)


def forward(
    student: Tensor, teacher: Tensor, exponent: float, eps: float, lengths: Tensor | None, padded_length: int
) -> tuple[Tensor, Tensor]:
    s = spectra.dense(student)
    t = spectra.dense_as(teacher, s)
    batch, wide = s.shape[0], accumulation_dtype(s.dtype)
    magnitude, pair = (s.new_empty(batch, dtype=wide) for _ in range(2))
    sizes, blocks, constants = _plan(s, lengths)
    partial = s.new_empty((batch, blocks, 2), dtype=wide)
    valid = magnitude if lengths is None else lengths.contiguous()  # an unread pointer must still be one
    launch(
        forward_kernel, batch * blocks, s,
        s, t, partial, *sizes, valid, padded_length, exponent, eps, blocks,
        LENGTHS=lengths is not None, **constants,
    )  # fmt: skip
    launch(
        mean_kernel, batch, s,
        partial, magnitude, pair, *sizes[:2], valid, padded_length, blocks,
        LENGTHS=lengths is not None, BLOCK=SUMS_AT_ONCE, num_warps=1,
    )  # fmt: skip
    return magnitude, pair


def backward(
    magnitude_grads: Tensor,
    complex_grads: Tensor,
    student: Tensor,
    teacher: Tensor,
    exponent: float,
    eps: float,
    lengths: Tensor | None,
    padded_length: int,
) -> Tensor:
    s = spectra.dense(student)
    t = spectra.dense_as(teacher, s)
    result = spectra.empty_like(s)
    sizes, blocks, constants = _plan(s, lengths)
    grads = [grad.to(accumulation_dtype(s.dtype)).contiguous() for grad in (magnitude_grads, complex_grads)]
    launch(
        backward_kernel, s.shape[0] * blocks, s,
        s, t, *grads, result, *sizes, s if lengths is None else lengths.contiguous(), padded_length, exponent, eps,
        blocks, LENGTHS=lengths is not None, **constants,
    )  # fmt: skip
    return result


def _plan(x: Tensor, lengths: Tensor | None) -> tuple[tuple[int, int, int], int, dict]:
    """(numbers of a sample, frames, inner), blocks per sample, and what is constant in the kernels."""
    numbers = x.shape[1:].numel()
    # Up to four loads of 16 bytes per thread of each spectrum; 8 bins take the registers that there are.
    block = WARPS * 32 * min(4 * 16 // x.element_size(), 16)
    blocks = triton.cdiv(numbers + ALIGNED.value - 1, block)
    inner = x.shape[-3] if spectra.is_bands_last(x) else 1
    # A bin is two numbers: at least those are read at once under a mask.
    at_once = max(2, width(x, numbers))
    constants = {"DOUBLE": x.dtype == torch.float64, "WIDTH": at_once, "BLOCK": block, "num_warps": WARPS}
    return (numbers, x.shape[-2], inner), blocks, constants
