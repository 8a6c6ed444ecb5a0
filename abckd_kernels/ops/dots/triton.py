"""dots in Triton: a program owns one channel of one sample.

Bytes, with S the size of a feature: forward reads 2 S; backward reads 2 S and writes S for each
gradient. Everything is float64, five
products per element: where that is rare (1/64 of float32's rate), memory is still slower.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_layers import aligned, kernel, launch, width
from . import factors

BLOCK = 512


@kernel
def forward_kernel(x_ptr, y_ptr, dots_ptr, columns: tl.int64, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = aligned(columns, WIDTH)
    x_ptr += row * columns
    y_ptr += row * columns
    xx = tl.zeros((BLOCK,), tl.float64)
    yy = tl.zeros((BLOCK,), tl.float64)
    xy = tl.zeros((BLOCK,), tl.float64)
    xe = tl.zeros((BLOCK,), tl.float64)
    ee = tl.zeros((BLOCK,), tl.float64)
    x_sum = tl.zeros((BLOCK,), tl.float64)
    e_sum = tl.zeros((BLOCK,), tl.float64)
    for begin in range(0, columns, BLOCK):
        k = begin + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + k, k < columns, other=0).to(tl.float64)
        y = tl.load(y_ptr + k, k < columns, other=0).to(tl.float64)
        e = y - x
        xx += x * x
        yy += y * y
        xy += x * y
        xe += x * e
        ee += e * e
        x_sum += x
        e_sum += e
    dots_ptr += row * 7
    tl.store(dots_ptr, tl.sum(xx, 0))
    tl.store(dots_ptr + 1, tl.sum(yy, 0))
    tl.store(dots_ptr + 2, tl.sum(xy, 0))
    tl.store(dots_ptr + 3, tl.sum(xe, 0))
    tl.store(dots_ptr + 4, tl.sum(ee, 0))
    tl.store(dots_ptr + 5, tl.sum(x_sum, 0))
    tl.store(dots_ptr + 6, tl.sum(e_sum, 0))


@kernel
def backward_kernel(
    x_factors_ptr, y_factors_ptr,  # (rows, 3)
    x_ptr, y_ptr, x_grad_ptr, y_grad_ptr, columns: tl.int64, blocks,
    OF_X: tl.constexpr, OF_Y: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    row = program // blocks
    columns = aligned(columns, WIDTH)
    k = program % blocks * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * columns + k, k < columns, other=0).to(tl.float64)
    y = tl.load(y_ptr + row * columns + k, k < columns, other=0).to(tl.float64)
    if OF_X:
        combine(x_factors_ptr + row * 3, x, y - x, x_grad_ptr + row * columns, k, columns)
    if OF_Y:
        combine(y_factors_ptr + row * 3, x, y - x, y_grad_ptr + row * columns, k, columns)


@triton.jit
def combine(factors_ptr, x, e, result_ptr, k, columns):
    """Stores the sum of x, e and 1, each times its factor."""
    fresh = x * tl.load(factors_ptr) + e * tl.load(factors_ptr + 1) + tl.load(factors_ptr + 2)
    # By way of float32, which Triton's interpreter needs for bfloat16.
    narrow = fresh if result_ptr.dtype.element_ty == tl.float64 else fresh.to(tl.float32)
    tl.store(result_ptr + k, narrow.to(result_ptr.dtype.element_ty), k < columns)


def forward(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.contiguous(), y.contiguous()
    dots = x.new_empty((*x.shape[:2], 7), dtype=torch.float64)
    columns = x.shape[2:].numel()
    launch(
        forward_kernel, x.shape[0] * x.shape[1], x,
        x, y, dots, columns, WIDTH=width(x, columns), BLOCK=BLOCK,
    )  # fmt: skip
    return dots


def backward(grad_products: Tensor, x: Tensor, y: Tensor, needed: list[bool]) -> tuple[Tensor, ...]:
    x, y = x.contiguous(), y.contiguous()
    both = [f.to(torch.float64).contiguous() for f in factors(grad_products)]
    results = tuple(torch.empty_like(x) if is_needed else x.new_empty(0) for is_needed in needed)
    columns = x.shape[2:].numel()
    blocks = triton.cdiv(columns, BLOCK)
    launch(
        backward_kernel, x.shape[0] * x.shape[1] * blocks, x,
        *both, x, y, *results, columns, blocks, OF_X=needed[0], OF_Y=needed[1], WIDTH=width(x, columns),
        BLOCK=BLOCK,
    )  # fmt: skip
    return results
