"""compress in Triton.

A program owns one student map of one sample. It passes over the maps three times, in tiles of whole rows [ROWS,
COLUMNS] of the grid: norms and products with every teacher map; the error and its products; the gradient. All maps of
a sample fit into L2, so that memory carries each teacher map once and later reads stay on the chip. Maps of another
resolution are pooled as they are loaded: a cell is the mean of the valid positions in its window. Accumulation:
float32, or float64 for float64 maps.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_layers import (
    MOST_REGISTERS,
    aligned,
    count_valid,
    first_tiles,
    kernel,
    launch,
    layer_of,
    pick,
    pick_size,
    sizes,
    width,
)
from . import score_gradients

EPS = tl.constexpr(1e-12)


@triton.jit
def load_rows(
    maps, layer, sample, row, column, counts, POOLED: tl.constexpr, LENGTHS: tl.constexpr, INDEX: tl.constexpr
):
    """Cells (row, column) of the pooled map of one layer and sample; zero unless `counts`.

    maps: per layer the map (B, T, F), T, F, and the positions that a window has at most along T and F.
    sample: index b, the grid's sizes, the latter of them also aligned, and the padding. INDEX: integers that hold T
    times the grid's T. POOLED: false where every map has the grid's size.
    """
    ptrs, frames, bands, windows_t, windows_f = maps
    b, GRID_T, GRID_F, grid_bands, length, padded_length = sample
    if not POOLED:
        map_ptr = pick(ptrs, layer) + b * GRID_T * grid_bands
        return tl.load(map_ptr + row.to(tl.int64)[:, None] * grid_bands + column[None, :], counts, other=0)
    T = pick_size(frames, layer).to(INDEX)
    F = pick_size(bands, layer).to(INDEX)
    map_ptr = pick(ptrs, layer) + b * T * F
    valid = T
    if LENGTHS:
        valid = count_valid(length, T, padded_length).to(INDEX)
    t0 = row * T // GRID_T
    t1 = ((row + 1) * T + GRID_T - 1) // GRID_T
    t1 = tl.where(t1 < valid, t1, valid)
    f0 = column * F // GRID_F
    f1 = ((column + 1) * F + GRID_F - 1) // GRID_F
    total = tl.zeros(counts.shape, map_ptr.dtype.element_ty)
    for dt in range(0, pick_size(windows_t, layer)):
        for df in range(0, pick_size(windows_f, layer)):
            inside = counts & (t0 + dt < t1)[:, None] & (f0 + df < f1)[None, :]
            total += tl.load(map_ptr + (t0 + dt).to(tl.int64)[:, None] * F + (f0 + df)[None, :], inside, other=0)
    size = (t1 - t0)[:, None] * (f1 - f0)[None, :]
    return total / tl.where(size > 0, size, 1).to(total.dtype)


@triton.jit
def normalised(values, inverse_norm, PER_FRAME: tl.constexpr):
    """Values over their norm: each row's own, or the map's, which is known by then. Returns the inverse norms too."""
    if PER_FRAME:
        norm = tl.sqrt(tl.sum(values * values, 1))[:, None]
        inverse = 1 / tl.where(norm > EPS, norm, EPS)
    else:
        inverse = tl.zeros((values.shape[0], 1), values.dtype) + inverse_norm
    return values * inverse, inverse


@triton.jit
def item(vector, index, j):
    """vector[j] of a vector in registers."""
    return tl.sum(tl.where(index == j, vector, 0))


@kernel
def forward_kernel(
    student, teacher,  # as `maps` in load_rows
    scores_ptr,  # (B, n, m)
    mask_ptr,  # (n, m), int8
    lengths_ptr,  # (B,)
    padded_length,
    distances_ptr,  # (B, n)
    attention_ptr,  # (B, n, m)
    attention_grads_ptr,  # (B, n, m)
    map_grads_ptr,  # (B, n, GRID_T, GRID_F)
    GRID_T, GRID_F,
    inverse_temperature: tl.float64,
    POOLED: tl.constexpr, HAS_SCORES: tl.constexpr, HAS_MASK: tl.constexpr, LENGTHS: tl.constexpr, PER_FRAME:
    tl.constexpr, GRADIENTS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TEACHERS:
    tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    n = len(student[0])
    m = len(teacher[0])
    grid_bands = aligned(GRID_F, WIDTH)
    b = (tl.program_id(0) // n).to(tl.int64)
    i = tl.program_id(0) % n
    program = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = distances_ptr.dtype.element_ty
    j = tl.arange(0, TEACHERS)
    column = tl.arange(0, COLUMNS).to(INDEX)
    length = b * 0
    valid = GRID_T
    if LENGTHS:
        length = tl.load(lengths_ptr + b)
        valid = count_valid(length, GRID_T, padded_length).to(tl.int32)
    sample = (b, GRID_T, GRID_F, grid_bands, length, padded_length)
    groups = tl.where(valid > 0, valid, 1).to(dtype) if PER_FRAME else tl.full((), 1, dtype)

    # Pass 1: <a_i, a_j> for every teacher layer j.
    square = tl.zeros((), dtype)
    squares = tl.zeros((TEACHERS,), dtype)
    products = tl.zeros((TEACHERS,), dtype)
    for first in range(0, valid, ROWS):
        row = (first + tl.arange(0, ROWS)).to(INDEX)
        counts = (row < valid)[:, None] & (column < grid_bands)[None, :]
        a = load_rows(student, i, sample, row, column, counts, POOLED, LENGTHS, INDEX)
        square += tl.sum(a * a)
        a, _ = normalised(a, 1, PER_FRAME)
        for layer in range(0, m):
            t = load_rows(teacher, layer, sample, row, column, counts, POOLED, LENGTHS, INDEX)
            squares += tl.where(j == layer, tl.sum(t * t), 0)
            t, _ = normalised(t, 1, PER_FRAME)
            products += tl.where(j == layer, tl.sum(a * t), 0)
    norm = tl.sqrt(square)
    inverse_norm = 1 / tl.where(norm > EPS, norm, EPS)
    norms = tl.sqrt(squares)
    inverse_norms = 1 / tl.where(norms > EPS, norms, EPS)
    if not PER_FRAME:
        products = products * inverse_norm * inverse_norms

    # Attention over the teacher layers.
    pair = program * m
    allowed = j < m
    if HAS_MASK:
        allowed = tl.load(mask_ptr + i.to(tl.int64) * m + j, allowed, other=0) != 0
    if HAS_SCORES:
        scores = tl.load(scores_ptr + pair + j, allowed, other=0).to(dtype)
    else:
        scores = products * (tl.full((), inverse_temperature, dtype) / groups)
    scores = tl.where(allowed, scores, float("-inf"))
    attention = tl.exp(scores - tl.max(scores, 0))
    attention = attention / tl.sum(attention, 0)
    tl.store(attention_ptr + pair + j, attention, j < m)
    products = tl.where(attention != 0, products, 0)  # what is left out may be NaN

    # Pass 2: the error a_i - c_i, summed from differences, and its products.
    distance = tl.zeros((), dtype)
    error_product = tl.zeros((), dtype)  # <a_i, error>
    error_products = tl.zeros((TEACHERS,), dtype)  # <a_j, error>
    for first in range(0, valid, ROWS):
        row = (first + tl.arange(0, ROWS)).to(INDEX)
        counts = (row < valid)[:, None] & (column < grid_bands)[None, :]
        a = load_rows(student, i, sample, row, column, counts, POOLED, LENGTHS, INDEX)
        a, _ = normalised(a, inverse_norm, PER_FRAME)
        error = a
        for layer in range(0, m):
            t = load_rows(teacher, layer, sample, row, column, counts, POOLED, LENGTHS, INDEX)
            t, _ = normalised(t, item(inverse_norms, j, layer), PER_FRAME)
            weight = item(attention, j, layer)
            error -= tl.where(weight != 0, weight * t, 0)
        distance += tl.sum(error * error)
        if GRADIENTS:
            error_product += tl.sum(a * error)
            for layer in range(0, m):
                t = load_rows(teacher, layer, sample, row, column, counts, POOLED, LENGTHS, INDEX)
                t, _ = normalised(t, item(inverse_norms, j, layer), PER_FRAME)
                error_products += tl.where(j == layer, tl.sum(t * error), 0)
    tl.store(distances_ptr + program, distance / groups)

    # Pass 3: d distance / d map, through a_i, through the similarities, and back through the normalisation.
    if GRADIENTS:
        attention_grads = tl.where(attention != 0, -2 * error_products / groups, 0)
        tl.store(attention_grads_ptr + pair + j, attention_grads, j < m)
        score_grads = tl.zeros((TEACHERS,), dtype)
        if not HAS_SCORES:
            centred = attention_grads - tl.sum(attention * attention_grads, 0)
            score_grads = attention * centred * (tl.full((), inverse_temperature, dtype) / groups)
        radial = 2 * error_product + tl.sum(score_grads * products, 0)
        for first in range(0, GRID_T, ROWS):
            row = (first + tl.arange(0, ROWS)).to(INDEX)
            counts = (row < valid)[:, None] & (column < grid_bands)[None, :]
            a = load_rows(student, i, sample, row, column, counts, POOLED, LENGTHS, INDEX)
            a, inverse = normalised(a, inverse_norm, PER_FRAME)
            grad = a * (2 / groups)
            for layer in range(0, m):
                t = load_rows(teacher, layer, sample, row, column, counts, POOLED, LENGTHS, INDEX)
                t, _ = normalised(t, item(inverse_norms, j, layer), PER_FRAME)
                weight = item(score_grads, j, layer) - 2 / groups * item(attention, j, layer)
                grad += tl.where(weight != 0, weight * t, 0)
            along = tl.sum(grad * a, 1)[:, None] if PER_FRAME else tl.zeros((ROWS, 1), dtype) + radial
            along = tl.where(inverse * EPS < 1, along, 0)  # below eps the norm is a constant
            grad = (grad - a * along) * inverse
            place = (program * GRID_T + row.to(tl.int64))[:, None] * grid_bands + column[None, :]
            exists = (row < GRID_T)[:, None] & (column < grid_bands)[None, :]
            tl.store(map_grads_ptr + place, tl.where(counts, grad, 0), exists)


@kernel
def backward_kernel(
    result_ptrs, frames, bands, windows_t, windows_f,  # per layer; windows: cells that hold a position, at most
    sample_tiles,  # per layer: tiles per sample
    layer_tiles,  # per layer: number of its first tile
    distance_grads_ptr,  # (B, n)
    map_grads_ptr,  # (B, n, GRID_T, GRID_F)
    lengths_ptr,
    padded_length,
    GRID_T, GRID_F,
    POOLED: tl.constexpr, LENGTHS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    n = len(result_ptrs)
    tile = tl.program_id(0)
    i = layer_of(tile, layer_tiles)
    T = pick_size(frames, i).to(INDEX)
    F = pick_size(bands, i).to(INDEX)
    positions = aligned(T.to(tl.int64) * F, WIDTH)
    tiles = pick_size(sample_tiles, i)
    place = tile - pick_size(layer_tiles, i)
    b = (place // tiles).to(tl.int64)
    p = (place % tiles).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    t = p.to(INDEX) // F
    f = p.to(INDEX) % F
    valid = T
    if LENGTHS:
        valid = count_valid(tl.load(lengths_ptr + b), T, padded_length)
    # Not pooled, the grid has the map's positions, whose alignment is known.
    source_ptr = map_grads_ptr + (b * n + i) * (GRID_T.to(tl.int64) * GRID_F if POOLED else positions)
    result_ptr = pick(result_ptrs, i) + b * positions
    scale = tl.load(distance_grads_ptr + b * n + i)
    if not POOLED:
        tl.store(result_ptr + p, scale * tl.load(source_ptr + p, p < positions, other=0), p < positions)
        return
    # The cells whose windows hold position t are u0 .. u1: windows again, with the roles of grid and map exchanged.
    u0 = t * GRID_T // T
    u1 = ((t + 1) * GRID_T + T - 1) // T
    v0 = f * GRID_F // F
    v1 = ((f + 1) * GRID_F + F - 1) // F
    total = tl.zeros((BLOCK,), result_ptr.dtype.element_ty)
    for du in range(0, pick_size(windows_t, i)):
        u = u0 + du
        begin = u * T // GRID_T
        end = ((u + 1) * T + GRID_T - 1) // GRID_T
        size_t = tl.where(end < valid, end, valid) - begin
        for dv in range(0, pick_size(windows_f, i)):
            v = v0 + dv
            size = size_t * (((v + 1) * F + GRID_F - 1) // GRID_F - v * F // GRID_F)
            inside = (t < valid) & (u < u1) & (v < v1)
            share = tl.load(source_ptr + u.to(tl.int64) * GRID_F + v, inside, other=0)
            total += tl.where(inside, share / tl.where(size > 0, size, 1).to(share.dtype), 0)
    tl.store(result_ptr + p, total * scale, p < positions)


def forward(
    student_maps: list[Tensor],
    teacher_maps: list[Tensor],
    scores: Tensor | None,
    mask: Tensor | None,
    grid: list[int],
    per_frame: bool,
    temperature: float,
    lengths: Tensor | None,
    padded_length: int,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    like, n, m = student_maps[0], len(student_maps), len(teacher_maps)
    batch = like.shape[0]
    distances, attention = like.new_empty((batch, n)), like.new_empty((batch, n, m))
    attention_grads = like.new_empty((batch, n, m) if gradients else 0)
    map_grads = like.new_empty((batch, n, *grid) if gradients else 0)
    columns = triton.next_power_of_2(grid[1])
    maps = [*student_maps, *teacher_maps]
    pooled = any(list(x.shape[1:]) != list(grid) for x in maps)
    rows = max(1, (512 if pooled else 1024) // columns)  # what the registers hold without a spill
    launch(
        forward_kernel, batch * n, like,
        _describe(student_maps, grid), _describe(teacher_maps, grid),
        like if scores is None else scores.to(like.dtype).contiguous(),
        like if mask is None else mask.to(torch.int8).contiguous(),
        like if lengths is None else lengths.contiguous(), padded_length,
        distances, attention, attention_grads, map_grads, *grid, 1 / temperature,
        POOLED=pooled, HAS_SCORES=scores is not None, HAS_MASK=mask is not None, LENGTHS=lengths is not None,
        PER_FRAME=per_frame, GRADIENTS=gradients, WIDTH=width(like, grid[1]), ROWS=rows, COLUMNS=columns,
        TEACHERS=triton.next_power_of_2(m), INDEX=_index(maps, grid), num_warps=4,
        registers=MOST_REGISTERS if like.dtype == torch.float64 else None,
    )  # fmt: skip
    return distances, attention, attention_grads, map_grads


def backward(
    grad_distances: Tensor | None,
    grad_attention: Tensor | None,
    attention: Tensor,
    attention_grads: Tensor,
    map_grads: Tensor,
    student_maps_sizes: list[int],
    lengths: Tensor | None,
    padded_length: int,
    needed: list[bool],
) -> tuple[list[Tensor], Tensor]:
    maps = []
    if needed[0] and grad_distances is not None:
        maps = _spread(grad_distances, map_grads, student_maps_sizes, lengths, padded_length)
    return maps, score_gradients(grad_distances, grad_attention, attention, attention_grads, needed[1])


def _spread(
    distance_grads: Tensor, map_grads: Tensor, map_sizes: list[int], lengths: Tensor | None, padded_length: int
) -> list[Tensor]:
    """The gradients of the student maps: those of the grid, spread over the windows."""
    batch, _, *grid = map_grads.shape
    results = [map_grads.new_empty((batch, *size)) for size in zip(map_sizes[::2], map_sizes[1::2], strict=True)]
    frames, bands = map_sizes[::2], map_sizes[1::2]
    pooled = list(map_sizes) != list(grid) * len(results)
    block = 256 if pooled else 512  # of pooled maps the registers hold no more places, which are int64
    positions = [t * f for t, f in zip(frames, bands, strict=True)]
    tiles = [triton.cdiv(count, block) for count in positions]
    starts, programs = first_tiles(batch * count for count in tiles)
    windows = (
        sizes(_window(cells, size) for size in of_maps) for cells, of_maps in zip(grid, (frames, bands), strict=True)
    )
    launch(
        backward_kernel, programs, map_grads,
        tuple(results), sizes(frames), sizes(bands), *windows, sizes(tiles), starts,
        distance_grads.expand(map_grads.shape[:2]).contiguous(), map_grads.contiguous(),
        map_grads if lengths is None else lengths.contiguous(), padded_length, *grid,
        POOLED=pooled, LENGTHS=lengths is not None,
        WIDTH=width(map_grads, *positions), BLOCK=block,
        INDEX=_index(results, grid), num_warps=2,
    )  # fmt: skip
    return results


def _describe(maps: list[Tensor], grid: list[int]) -> tuple[tuple, ...]:
    """What load_rows needs of the maps of one network."""
    frames, bands = [x.shape[1] for x in maps], [x.shape[2] for x in maps]
    windows = (
        sizes(_window(size, cells) for size in of_maps) for of_maps, cells in zip((frames, bands), grid, strict=True)
    )
    return tuple(x.contiguous() for x in maps), sizes(frames), sizes(bands), *windows


def _index(maps: list[Tensor], grid: list[int]) -> tl.dtype:
    """Integers that hold every position of a map and every product of its sizes with the grid's."""
    largest = max(
        (size + 1) * (cells + 1) for x in maps for size in x.shape[1:] for cells in (size, *x.shape[1:], *grid)
    )
    return tl.int32 if largest < 2**31 else tl.int64


def _window(size: int, cells: int) -> int:
    """How many of `size` positions a window has at most, when they are pooled to `cells`."""
    return size // cells if size % cells == 0 else size // cells + 2
