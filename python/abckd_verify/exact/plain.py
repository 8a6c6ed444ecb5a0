"""The definition as anybody would write it in PyTorch, in the features' own dtype: the measure of our accuracy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from . import oracle


def tap(x: Tensor, power: int, valid: list[int]) -> tuple[Tensor, Tensor]:
    """Attention map and channel means."""
    frames = torch.arange(x.shape[2]) < torch.tensor(valid, dtype=torch.int64)[:, None]
    x = torch.where(frames.reshape(x.shape[0], 1, -1, *[1] * (x.dim() - 3)), x, 0)
    positions = torch.tensor(valid).clamp(min=1)[:, None] * (x[0, 0, 0].numel() if x.shape[0] else 1)
    return (x.abs() ** power).mean(1), x.flatten(2).sum(2) / positions


def compress(
    student_maps, teacher_maps, *, scores=None, mask=None, grid=None, per_frame=False, temperature=0.1, lengths=None,
    padded_length=None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Distances and attention."""
    maps = [x.unsqueeze(-1) if x.dim() == 2 else x for x in (*student_maps, *teacher_maps)]
    n, batch = len(student_maps), maps[0].shape[0]
    grid = [min(x.shape[axis] for x in maps) for axis in (1, 2)] if grid is None else [*grid, 1][:2]
    padded_length = max(x.shape[1] for x in maps) if padded_length is None else padded_length
    rows = torch.tensor(oracle.valid_frames(lengths, grid[0], padded_length, batch))
    inside = (torch.arange(grid[0]) < rows[:, None])[..., None]
    parts = rows.clamp(min=1) if per_frame else torch.ones(batch)

    def normalised(x):
        valid = oracle.valid_frames(lengths, x.shape[1], padded_length, batch)
        over_frames = torch.stack([_pooling(grid[0], x.shape[1], frames).to(x) for frames in valid])
        x = torch.where(inside, over_frames @ x @ _pooling(grid[1], x.shape[2]).to(x).T, 0)
        return functional.normalize(x if per_frame else x.flatten(1)[:, None], dim=-1)

    maps = torch.stack([normalised(x) for x in maps], 1)
    a, t = maps[:, :n], maps[:, n:]
    if scores is None:
        scores = torch.einsum("bngu,bmgu->bnm", a, t) / parts[:, None, None].to(a) / temperature
    if mask is not None:
        scores = scores.masked_fill(~torch.as_tensor(mask), -torch.inf)
    attention = scores.softmax(-1).to(a)
    error = a - torch.einsum("bnm,bmgu->bngu", attention, t)
    return error.square().sum((2, 3)) / parts[:, None].to(a), attention


def abc_loss(
    students, teachers, *, scores=None, power=2, normalize="sample", lengths=None, weights=None, **options
) -> Tensor:  # fmt: skip
    """Mean over the batch."""
    features = [*students, *(x.detach() for x in teachers)]
    padded_length, batch, n = max(x.shape[2] for x in features), features[0].shape[0], len(students)
    maps = [tap(x, power, oracle.valid_frames(lengths, x.shape[2], padded_length, batch))[0] for x in features]
    if isinstance(scores, str):
        scores = torch.zeros(batch, n, len(teachers))
    distances, _ = compress(
        maps[:n],
        maps[n:],
        scores=scores,
        per_frame=normalize == "frame",
        lengths=lengths,
        padded_length=padded_length,
        **options,
    )
    weights = torch.full((n,), 1 / n) if weights is None else torch.tensor(weights, dtype=torch.float64)
    return (distances @ weights.to(distances)).mean()


def _pooling(cells: int, size: int, valid: int | None = None) -> Tensor:
    return torch.from_numpy(oracle.pooling_matrix(cells, size, valid))
