"""The definition as anybody would write it in PyTorch, in the features' own dtype: the measure of our accuracy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .oracle import pooling_matrix
from .padding import masked, positions, valid_frames


def tap(x: Tensor, power: int, lengths: Tensor | None = None, padded_length: int = 0) -> tuple[Tensor, Tensor]:
    """Attention map and channel means."""
    x = masked(x, lengths, padded_length)
    return (x.abs() ** power).mean(1), x.flatten(2).sum(2) / _columns(positions(x, lengths, padded_length))


def _columns(count: Tensor | int) -> Tensor | int:
    return count[:, None] if isinstance(count, Tensor) else count


def compress(
    student_maps, teacher_maps, *, scores=None, mask=None, grid=None, per_frame=False, temperature=0.1, lengths=None,
    padded_length=None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Distances and attention."""
    maps = [x.unsqueeze(-1) if x.dim() == 2 else x for x in (*student_maps, *teacher_maps)]
    n, batch = len(student_maps), maps[0].shape[0]
    grid = [min(x.shape[axis] for x in maps) for axis in (1, 2)] if grid is None else [*grid, 1][:2]
    padded_length = max(x.shape[1] for x in maps) if padded_length is None else padded_length
    lengths = None if lengths is None else torch.as_tensor(lengths, device=maps[0].device)
    parts = torch.ones(batch, device=maps[0].device)
    if per_frame:
        parts = parts * grid[0] if lengths is None else valid_frames(lengths, grid[0], padded_length).clamp(min=1)

    def normalised(x):
        if lengths is None:
            x = functional.adaptive_avg_pool2d(x, grid)
        else:
            valid = valid_frames(lengths, x.shape[1], padded_length).tolist()
            over_frames = torch.stack([_pooling(grid[0], x.shape[1], frames).to(x) for frames in valid])
            x = over_frames @ x @ _pooling(grid[1], x.shape[2]).to(x).T
            x = masked(x, lengths, padded_length, axis=1)
        return functional.normalize(x if per_frame else x.flatten(1)[:, None], dim=-1)

    maps = torch.stack([normalised(x) for x in maps], 1)
    a, t = maps[:, :n], maps[:, n:]
    if scores is None:
        scores = torch.einsum("bngu,bmgu->bnm", a, t) / parts[:, None, None].to(a) / temperature
    if mask is not None:
        scores = scores.masked_fill(~torch.as_tensor(mask, device=scores.device), -torch.inf)
    attention = scores.softmax(-1).to(a)
    error = a - torch.einsum("bnm,bmgu->bngu", attention, t)
    return error.square().sum((2, 3)) / parts[:, None].to(a), attention


def abc_loss(
    students, teachers, *, scores=None, power=2, normalize="sample", lengths=None, weights=None, **options
) -> Tensor:  # fmt: skip
    """Mean over the batch."""
    features = [*students, *(x.detach() for x in teachers)]
    padded_length, batch, n = max(x.shape[2] for x in features), features[0].shape[0], len(students)
    lengths = None if lengths is None else torch.as_tensor(lengths)
    maps = [tap(x, power, lengths, padded_length)[0] for x in features]
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
    return torch.from_numpy(pooling_matrix(cells, size, valid))
