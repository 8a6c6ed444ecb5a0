"""tap in Triton.

A program owns BLOCK_P positions of one sample and walks through the channels in tiles [BLOCK_C, BLOCK_P]: energies
add up elementwise in registers and are reduced over channels once, behind the loop. Channel sums need a reduction per
tile; where positions are contiguous, a row of the tile lies within one warp, and shuffles do that. Triton then moves
the sums through shared memory to the threads that store them: with means, the loop has barriers.

Bytes per element of a feature: forward reads 1, writes 1/C (map) and 1/BLOCK_P (partial sums, if means are wanted,
read again by a second, small launch in a fixed order; BLOCK_P is large enough for both to stay below 4 %). Backward
reads x and the incoming gradient once and writes the result once. Accumulation: float32, or float64 for float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shapes import accumulation_dtype, dense, empty_like, is_channels_last
from ..triton_layers import (
    aligned,
    count_valid,
    first_tiles,
    grouped,
    kernel,
    launch,
    layer_of,
    pick,
    pick_size,
    registers_of_backward,
    sizes,
    width,
)

WARP = 64 if torch.version.hip else 32
MEAN_LOAD = 4  # channels that a thread of mean_kernel reads at once: 16 bytes


@dataclass(frozen=True)
class Tile:
    """Shape of a program's tile: 16 bytes per thread along the contiguous axis, four such loads in flight."""

    block_c: int
    block_p: int
    num_warps: int = 4

    @classmethod
    def of(cls, x: Tensor) -> Tile:
        warp_row = WARP * 16 // x.element_size()  # elements that one warp reads at once
        if is_channels_last(x):
            # Sums over a tile's positions are written and read once more: 2 values for every block_p of a channel.
            least_p = 64 * accumulation_dtype(x.dtype).itemsize // x.element_size()
            block_c = min(triton.next_power_of_2(x.shape[1]), 16 * warp_row // least_p)
            return cls(block_c, 16 * warp_row // block_c)
        return cls(16, warp_row)


@triton.jit
def locate(
    tile, layers, lengths_ptr, padded_length, LENGTHS: tl.constexpr,
    C_WIDTH: tl.constexpr, F_WIDTH: tl.constexpr, P_WIDTH: tl.constexpr,
):  # fmt: skip
    """The tile's layer: its number, C, F, positions. Its sample b; its number in the sample and in the layer; the valid
    positions of b.

    layers: per layer channels, frames, bands, tiles per sample, and the number of its first tile.
    *_WIDTH: what divides C, F and positions.
    """
    channels, frames, bands, sample_tiles, layer_tiles = layers
    layer = layer_of(tile, layer_tiles)
    C = aligned(pick_size(channels, layer), C_WIDTH)
    T = pick_size(frames, layer).to(tl.int64)
    F = aligned(pick_size(bands, layer), F_WIDTH)
    positions = aligned(T * F, P_WIDTH)
    tiles = pick_size(sample_tiles, layer)
    in_layer = tile - pick_size(layer_tiles, layer)
    b = (in_layer // tiles).to(tl.int64)
    valid = positions
    if LENGTHS:
        valid = count_valid(tl.load(lengths_ptr + b), T, padded_length) * F
    return layer, C, positions, b, (in_layer % tiles).to(tl.int64), in_layer.to(tl.int64), valid


@kernel
def forward_kernel(
    x_ptrs,  # per layer: feature of sample 0
    map_ptrs,  # per layer: (B, frames * bands)
    partial_ptrs,  # per layer: (B, tiles, channels), sums over the positions of a tile
    layers,  # as in locate
    lengths_ptr,  # (B,)
    padded_length,
    POWER: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    MEANS: tl.constexpr,
    LENGTHS: tl.constexpr,
    C_WIDTH: tl.constexpr,
    F_WIDTH: tl.constexpr,
    P_WIDTH: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    tile = tl.program_id(0)
    layer, C, positions, b, in_sample, in_layer, valid = locate(
        tile, layers, lengths_ptr, padded_length, LENGTHS, C_WIDTH, F_WIDTH, P_WIDTH
    )
    p = in_sample * BLOCK_P + tl.arange(0, BLOCK_P)
    x_ptr = pick(x_ptrs, layer) + b * C * positions
    map_ptr = pick(map_ptrs, layer) + b * positions
    stride_c = 1 if CHANNELS_LAST else positions
    stride_p = C if CHANNELS_LAST else 1

    energy = tl.zeros((BLOCK_C, BLOCK_P), map_ptr.dtype.element_ty)
    for first in range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        inside = (c < C)[:, None] & (p < valid)[None, :]
        x = tl.load(x_ptr + c[:, None] * stride_c + p[None, :] * stride_p, inside, other=0).to(energy.dtype)
        energy += x * x if POWER == 2 else tl.abs(x)
        if MEANS:
            partial_ptr = pick(partial_ptrs, layer) + in_layer * C
            tl.store(partial_ptr + c, tl.sum(x, 1), c < C)
    tl.store(map_ptr + p, tl.sum(energy, 0) / C.to(energy.dtype), p < positions)


@kernel
def mean_kernel(
    partial_ptrs,
    mean_ptrs,  # per layer: (B, channels)
    sample_tiles,  # per layer: tiles per sample
    layers,  # as in locate, with programs for tiles
    lengths_ptr,
    padded_length,
    LENGTHS: tl.constexpr,
    C_WIDTH: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    program = tl.program_id(0)
    layer, C, _, b, in_sample, _, valid = locate(program, layers, lengths_ptr, padded_length, LENGTHS, C_WIDTH, 1, 1)
    c = in_sample * BLOCK_C + tl.arange(0, BLOCK_C)
    tiles = pick_size(sample_tiles, layer)
    partial_ptr = pick(partial_ptrs, layer) + b * tiles * C
    mean_ptr = pick(mean_ptrs, layer) + b * C
    total = tl.zeros((BLOCK_C,), mean_ptr.dtype.element_ty)
    for t in range(0, tiles):
        total += tl.load(partial_ptr + t * C + c, c < C, other=0)
    counted = tl.where(valid > 0, valid, 1)
    tl.store(mean_ptr + c, total / counted.to(total.dtype), c < C)


@kernel
def backward_kernel(
    x_ptrs,
    grad_ptrs,  # per layer: gradient that arrives for x, laid out as x
    map_grad_ptrs,  # per layer: (B, frames * bands)
    mean_grad_ptrs,  # per layer: (B, channels)
    result_ptrs,  # per layer: gradient of x, laid out as x
    layers,  # as in locate
    lengths_ptr,
    padded_length,
    POWER: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    HAS_GRAD: tl.constexpr,
    HAS_MAP: tl.constexpr,
    HAS_MEAN: tl.constexpr,
    LENGTHS: tl.constexpr,
    DOUBLE: tl.constexpr,
    C_WIDTH: tl.constexpr,
    F_WIDTH: tl.constexpr,
    P_WIDTH: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    tile = tl.program_id(0)
    layer, C, positions, b, in_sample, in_layer, valid = locate(
        tile, layers, lengths_ptr, padded_length, LENGTHS, C_WIDTH, F_WIDTH, P_WIDTH
    )
    p = in_sample * BLOCK_P + tl.arange(0, BLOCK_P)
    x_ptr = pick(x_ptrs, layer) + b * C * positions
    result_ptr = pick(result_ptrs, layer) + b * C * positions
    stride_c = 1 if CHANNELS_LAST else positions
    stride_p = C if CHANNELS_LAST else 1
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    if HAS_MAP:
        map_grad_ptr = pick(map_grad_ptrs, layer) + b * positions
        map_grad = tl.load(map_grad_ptr + p, p < valid, other=0) * POWER / C.to(dtype)

    for first in range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        offset = c[:, None] * stride_c + p[None, :] * stride_p
        exists = (c < C)[:, None] & (p < positions)[None, :]
        counts = (c < C)[:, None] & (p < valid)[None, :]
        result = tl.zeros((BLOCK_C, BLOCK_P), dtype)
        if HAS_MAP:
            x = tl.load(x_ptr + offset, counts, other=0).to(dtype)
            if POWER == 1:
                x = tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0)).to(dtype)
            result += x * map_grad[None, :]
        if HAS_MEAN:
            mean_grad_ptr = pick(mean_grad_ptrs, layer) + b * C
            share = tl.load(mean_grad_ptr + c, c < C, other=0) / tl.where(valid > 0, valid, 1).to(dtype)
            result += tl.where(counts, share[:, None], 0)
        if HAS_GRAD:
            grad_ptr = pick(grad_ptrs, layer) + b * C * positions
            result += tl.load(grad_ptr + offset, exists, other=0).to(dtype)
        tl.store(result_ptr + offset, result.to(result_ptr.dtype.element_ty), exists)


def forward(
    features: list[Tensor], power: int, means: bool, lengths: Tensor | None, padded_length: int
) -> tuple[list[Tensor], list[Tensor]]:
    inputs = [dense(x) for x in features]
    maps = [x.new_empty((x.shape[0], *x.shape[2:]), dtype=accumulation_dtype(x.dtype)) for x in inputs]
    channel_means = [x.new_empty(x.shape[:2], dtype=accumulation_dtype(x.dtype)) for x in inputs if means]
    for (_, channels_last, tile), indices in grouped(range(len(inputs)), lambda i: _launch_key(inputs[i])):
        xs = [inputs[i] for i in indices]
        tiles = _tiles(xs, tile)
        layers, programs = _describe(xs, tiles)
        partials = tuple(
            x.new_empty((x.shape[0], count, x.shape[1]), dtype=accumulation_dtype(x.dtype)) if means else maps[i]
            for i, x, count in zip(indices, xs, tiles, strict=True)
        )
        valid = maps[indices[0]] if lengths is None else lengths.contiguous()  # an unread pointer must still be one
        launch(
            forward_kernel, programs, xs[0],
            tuple(xs), tuple(maps[i] for i in indices), partials, layers, valid, padded_length,
            POWER=power, CHANNELS_LAST=channels_last, MEANS=means, LENGTHS=lengths is not None, **_widths(xs),
            BLOCK_C=tile.block_c, BLOCK_P=tile.block_p, num_warps=tile.num_warps,
        )  # fmt: skip
        if means:
            block = MEAN_LOAD * WARP
            layers, programs = _describe(xs, tuple(triton.cdiv(x.shape[1], block) for x in xs))
            launch(
                mean_kernel, programs, xs[0],
                partials, tuple(channel_means[i] for i in indices), sizes(tiles), layers, valid,
                padded_length, LENGTHS=lengths is not None, C_WIDTH=width(partials[0], *(x.shape[1] for x in xs)),
                BLOCK_C=block, num_warps=1,
            )  # fmt: skip
    return maps, channel_means


def backward(
    grads: list[Tensor | None],
    features: list[Tensor],
    map_grads: list[Tensor | None],
    mean_grads: list[Tensor | None],
    power: int,
    lengths: Tensor | None,
    padded_length: int,
) -> list[Tensor]:
    inputs = [dense(x) for x in features]
    results = [empty_like(x) for x in inputs]
    grads = [_laid_out(g, x) for g, x in zip(grads, inputs, strict=True)]
    map_grads = [_accumulated(g, x, (x.shape[0], *x.shape[2:])) for g, x in zip(map_grads, inputs, strict=True)]
    mean_grads = [_accumulated(g, x, x.shape[:2]) for g, x in zip(mean_grads, inputs, strict=True)]
    by_kind = (grads, map_grads, mean_grads)

    def key(i: int) -> tuple:
        return *_launch_key(inputs[i]), tuple(group[i] is not None for group in by_kind)

    for (dtype, channels_last, tile, present), indices in grouped(range(len(inputs)), key):
        xs = [inputs[i] for i in indices]
        layers, programs = _describe(xs, _tiles(xs, tile))
        widths = _widths(xs)
        own, of_map, of_mean = (
            tuple(group[i] for i in indices) if given else tuple(xs)  # an unread pointer must still be one
            for group, given in zip(by_kind, present, strict=True)
        )
        launch(
            backward_kernel, programs, xs[0],
            tuple(xs), own, of_map, of_mean, tuple(results[i] for i in indices), layers,
            xs[0] if lengths is None else lengths.contiguous(), padded_length,
            POWER=power, CHANNELS_LAST=channels_last, HAS_GRAD=present[0], HAS_MAP=present[1], HAS_MEAN=present[2],
            LENGTHS=lengths is not None, DOUBLE=dtype == torch.float64, **widths,
            BLOCK_C=tile.block_c, BLOCK_P=tile.block_p, num_warps=tile.num_warps,
            registers=registers_of_backward(widths, channels_last),
        )  # fmt: skip
    return results


def _launch_key(x: Tensor) -> tuple[torch.dtype, bool, Tile]:
    return x.dtype, is_channels_last(x), Tile.of(x)


def _bands(x: Tensor) -> int:
    return x.shape[3] if x.dim() == 4 else 1


def _tiles(xs: list[Tensor], tile: Tile) -> tuple[int, ...]:
    """Tiles per sample of each layer."""
    return tuple(triton.cdiv(x.shape[2] * _bands(x), tile.block_p) for x in xs)


def _widths(xs: list[Tensor]) -> dict[str, int]:
    """The widths in `locate`. Where channels lie together, positions matter to maps only, 1/C of the bytes: of them
    what bands tell is enough, which is the same for every length."""
    of_bands = width(xs[0], *map(_bands, xs))
    return {
        "C_WIDTH": width(xs[0], *(x.shape[1] for x in xs)),
        "F_WIDTH": of_bands,
        "P_WIDTH": of_bands if is_channels_last(xs[0]) else width(xs[0], *(x.shape[2] * _bands(x) for x in xs)),
    }


def _describe(xs: list[Tensor], tiles: tuple[int, ...]) -> tuple[tuple[tuple[int, ...], ...], int]:
    """What `locate` needs of layers with so many tiles per sample, and the number of all tiles."""
    starts, programs = first_tiles(x.shape[0] * count for x, count in zip(xs, tiles, strict=True))
    channels, frames, bands = ([x.shape[1] for x in xs], [x.shape[2] for x in xs], [_bands(x) for x in xs])
    return (sizes(channels), sizes(frames), sizes(bands), sizes(tiles), starts), programs


def _laid_out(grad: Tensor | None, x: Tensor) -> Tensor | None:
    """`grad` as it is if it lies in memory exactly as `x` does, else a copy that does."""
    if grad is None or (grad.dtype == x.dtype and grad.shape == x.shape and grad.stride() == x.stride()):
        return grad
    return empty_like(x).copy_(grad)


def _accumulated(grad: Tensor | None, x: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    return None if grad is None else grad.to(accumulation_dtype(x.dtype)).expand(shape).contiguous()
