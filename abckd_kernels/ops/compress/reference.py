"""compress in plain PyTorch: the definition."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..shapes import frame_mask, valid_frames
from . import score_gradients

EPS = 1e-12  # as torch.nn.functional.normalize; a silent map stays zero


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
    rows = frame_mask(lengths, grid[0], padded_length)
    groups, inverse_groups = _groups(student_maps[0], grid, per_frame, rows)
    student, teacher = (
        torch.stack([_pool(x, grid, lengths, padded_length) for x in maps], 1) for maps in (student_maps, teacher_maps)
    )
    if rows is not None:
        student, teacher = (x.masked_fill(~rows[:, None, :, None], 0) for x in (student, teacher))
    student, teacher = (x.reshape(*x.shape[:2], groups, grid[0] * grid[1] // groups) for x in (student, teacher))
    student_norm = student.square().sum(-1, keepdim=True).sqrt()
    a = student / student_norm.clamp(min=EPS)
    t = teacher / teacher.square().sum(-1, keepdim=True).sqrt().clamp(min=EPS)

    similar = scores is None
    if scores is None:
        scores = torch.einsum("bngu,bmgu->bnm", a, t) * inverse_groups[:, None, None] / temperature
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    attention = scores.softmax(-1)
    error = a - _mix(attention, t)
    distances = error.square().sum((2, 3)) * inverse_groups[:, None]
    if not gradients:
        return distances, attention, attention.new_empty(0), attention.new_empty(0)

    attention_grads = -2 * torch.einsum("bngu,bmgu->bnm", error, t) * inverse_groups[:, None, None]
    attention_grads = attention_grads.masked_fill(attention == 0, 0)
    a_grads = 2 * error * inverse_groups[:, None, None, None]
    if similar:
        score_grads = attention * (attention_grads - (attention * attention_grads).sum(-1, keepdim=True))
        score_grads = score_grads * inverse_groups[:, None, None] / temperature
        a_grads = a_grads + _mix(score_grads, t)
    radial = torch.where(student_norm > EPS, (a * a_grads).sum(-1, keepdim=True), 0)
    map_grads = (a_grads - a * radial) / student_norm.clamp(min=EPS)
    return distances, attention, attention_grads, map_grads.reshape(*map_grads.shape[:2], *grid)


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
    grid, maps = map_grads.shape[2:], []
    if needed[0] and grad_distances is not None:
        for index, size in enumerate(zip(student_maps_sizes[::2], student_maps_sizes[1::2], strict=True)):
            grad = map_grads[:, index] * grad_distances[:, index, None, None]
            over_frames = _windows(grid[0], size[0], lengths, padded_length, grad)
            over_bands = _windows(grid[1], size[1], None, 0, grad)
            maps.append(over_frames.transpose(-1, -2) @ grad @ over_bands)
    return maps, score_gradients(grad_distances, grad_attention, attention, attention_grads, needed[1])


def _groups(like: Tensor, grid: list[int], per_frame: bool, rows: Tensor | None) -> tuple[int, Tensor]:
    """How many parts of a map are normalised each by itself, and 1 / (those that are valid), of shape (B,)."""
    one = like.new_ones(like.shape[0])
    if not per_frame:
        return 1, one
    return grid[0], one / grid[0] if rows is None else one / rows.sum(1).clamp(min=1)


def _mix(weights: Tensor, t: Tensor) -> Tensor:
    """sum_j weights_ij t_j without the layers of weight zero: what is left out may be NaN."""
    columns = weights[..., None, None].unbind(2)
    parts = ((w * x.unsqueeze(1)).masked_fill(w == 0, 0) for w, x in zip(columns, t.unbind(1), strict=True))
    return functools.reduce(torch.add, parts)


def _pool(x: Tensor, grid: list[int], lengths: Tensor | None, padded_length: int) -> Tensor:
    over_frames = _windows(grid[0], x.shape[1], lengths, padded_length, x)
    over_bands = _windows(grid[1], x.shape[2], None, 0, x)
    valid = frame_mask(lengths, x.shape[1], padded_length)
    if valid is not None:
        x = x.masked_fill(~valid[:, :, None], 0)
    return over_frames @ x @ over_bands.transpose(-1, -2)


def _windows(cells: int, size: int, lengths: Tensor | None, padded_length: int, like: Tensor) -> Tensor:
    """Pooling along one axis as a matrix, (cells, size) or (B, cells, size): 1/|W_u| where a valid p lies in W_u."""
    cell = torch.arange(cells, device=like.device)[:, None]
    position = torch.arange(size, device=like.device)
    inside = (position >= cell * size // cells) & (position < ((cell + 1) * size + cells - 1) // cells)
    if lengths is not None:
        inside = inside & (position < valid_frames(lengths, size, padded_length)[:, None, None])
    return inside / inside.sum(-1, keepdim=True).clamp(min=1).to(like.dtype)
