"""The definition in NumPy float64, one sample at a time, with its gradient in closed form; apart from the library."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

EPS = 1e-12


def valid_frames(lengths, frames: int, padded_length: int, batch: int) -> list[int]:
    """ceil(length * frames / padded_length) for each sample; all frames without lengths."""
    if lengths is None:
        return [frames] * batch
    return [min(-(-int(length) * frames // padded_length), frames) for length in lengths]


# ---------------------------------------------------------------------------------------------- tap


def attention_map(x: np.ndarray, power: int, valid: list[int]) -> np.ndarray:
    """1/C sum_c |x|^power, (B, *spatial); zero in frames that are not valid."""
    result = np.zeros((x.shape[0], *x.shape[2:]))
    for b, frames in enumerate(valid):
        result[b, :frames] = (np.abs(x[b, :, :frames]) ** power).mean(0)
    return result


def channel_mean(x: np.ndarray, valid: list[int]) -> np.ndarray:
    """Mean over the valid positions, (B, C)."""
    result = np.zeros(x.shape[:2])
    for b, frames in enumerate(valid):
        if frames:
            result[b] = x[b, :, :frames].reshape(x.shape[1], -1).mean(1)
    return result


def tap_gradient(x: np.ndarray, power: int, valid: list[int], grad=0.0, map_grad=None, mean_grad=None) -> np.ndarray:
    """What reaches x from the gradients of the feature that passes through, of its map and of its channel means."""
    result = np.zeros(x.shape) + grad
    for b, frames in enumerate(valid):
        inside = x[b, :, :frames]
        positions = inside[0].size
        if map_grad is not None:
            slope = power * np.abs(inside) ** (power - 1) * np.sign(inside)
            result[b, :, :frames] += slope * map_grad[b, :frames] / x.shape[1]
        if mean_grad is not None and positions:
            result[b, :, :frames] += mean_grad[b].reshape(-1, *[1] * (x.ndim - 2)) / positions
    return result


# ---------------------------------------------------------------------------------------------- compress


def pooling_matrix(cells: int, size: int, valid: int | None = None) -> np.ndarray:
    """Row u averages over floor(u size / cells) .. ceil((u + 1) size / cells), as far as that is valid."""
    matrix = np.zeros((cells, size))
    for cell in range(cells):
        begin, end = cell * size // cells, -(-(cell + 1) * size // cells)
        end = end if valid is None else min(end, valid)
        if end > begin:
            matrix[cell, begin:end] = 1 / (end - begin)
    return matrix


class Compressed(NamedTuple):
    distances: np.ndarray  # (B, n)
    attention: np.ndarray  # (B, n, m)
    map_grads: list[np.ndarray]  # d distances[:, i] / d student_maps[i]
    score_grads: np.ndarray  # d distances[b, i] / d scores[b, i, j]


def compress(
    student_maps, teacher_maps, *, scores=None, mask=None, grid=None, per_frame=False, temperature=0.1, lengths=None,
    padded_length=None,
) -> Compressed:  # fmt: skip
    flat = student_maps[0].ndim == 2
    students, teachers = ([x[..., None] if flat else x for x in maps] for maps in (student_maps, teacher_maps))
    sizes = [x.shape[1:] for x in (*students, *teachers)]
    grid = tuple(min(axis) for axis in zip(*sizes, strict=True)) if grid is None else (*grid, 1)[:2]
    padded_length = max(size[0] for size in sizes) if padded_length is None else padded_length
    batch, n, m = students[0].shape[0], len(students), len(teachers)
    mask = np.ones((n, m), bool) if mask is None else np.asarray(mask, bool)
    result = Compressed(
        np.zeros((batch, n)), np.zeros((batch, n, m)), [np.zeros(x.shape) for x in students], np.zeros((batch, n, m))
    )
    for b in range(batch):
        length = None if lengths is None else [lengths[b]]
        rows = valid_frames(length, grid[0], padded_length, 1)[0]

        def pooling(x, length=length):
            frames = None if length is None else valid_frames(length, x.shape[1], padded_length, 1)[0]
            return pooling_matrix(grid[0], x.shape[1], frames), pooling_matrix(grid[1], x.shape[2])

        def pooled(x, b=b, rows=rows, pooling=pooling):
            over_frames, over_bands = pooling(x)
            valid = x[b].copy()
            valid[over_frames.sum(0) == 0] = 0
            cells = (over_frames @ valid @ over_bands.T)[:rows]
            return cells if per_frame else cells.reshape(1, -1)

        parts = max(rows, 1) if per_frame else 1
        t = [_normalised(pooled(x)) for x in teachers]
        for i, x in enumerate(students):
            a = _normalised(pooled(x))
            similarity = np.array([(a * tj).sum() / parts / temperature for tj in t])
            alpha = _softmax(similarity if scores is None else scores[b, i], mask[i])
            error = a - sum(alpha[j] * t[j] for j in range(m))
            result.distances[b, i] = (error**2).sum() / parts
            result.attention[b, i] = alpha

            alpha_grad = np.array([-2 * (error * tj).sum() / parts for tj in t])
            result.score_grads[b, i] = score_grad = alpha * (alpha_grad - alpha @ alpha_grad)
            a_grad = 2 * error / parts
            if scores is None:
                a_grad = a_grad + sum(score_grad[j] * t[j] for j in range(m)) / parts / temperature
            cells_grad = np.zeros(grid)
            cells_grad[:rows] = _normalised_gradient(pooled(x), a_grad).reshape(rows, grid[1])
            over_frames, over_bands = pooling(x)
            result.map_grads[i][b] = over_frames.T @ cells_grad @ over_bands
    if flat:
        result = result._replace(map_grads=[x[..., 0] for x in result.map_grads])
    return result


def _normalised(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.sqrt((x**2).sum(-1, keepdims=True)), EPS)


def _normalised_gradient(x: np.ndarray, grad: np.ndarray) -> np.ndarray:
    norm = np.sqrt((x**2).sum(-1, keepdims=True))
    radial = np.where(norm > EPS, (_normalised(x) * grad).sum(-1, keepdims=True), 0)
    return (grad - _normalised(x) * radial) / np.maximum(norm, EPS)


def _softmax(scores: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    powers = np.where(allowed, np.exp(scores - scores[allowed].max()), 0)
    return powers / powers.sum()


# ---------------------------------------------------------------------------------------------- abc_loss


class Loss(NamedTuple):
    per_sample: np.ndarray  # (B,)
    attention: np.ndarray
    student_grads: list[np.ndarray]  # of the mean over the batch
    score_grads: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.per_sample.mean())


def abc_loss(
    students, teachers, *, scores=None, temperature=0.1, power=2, grid=None, normalize="sample", lengths=None,
    weights=None, mask=None,
) -> Loss:  # fmt: skip
    batch, n, m = students[0].shape[0], len(students), len(teachers)
    padded_length = max(x.shape[2] for x in (*students, *teachers))
    if isinstance(scores, str):
        scores = np.zeros((batch, n, m))
    weights = np.full(n, 1 / n) if weights is None else np.asarray(weights, float)
    valid = [valid_frames(lengths, x.shape[2], padded_length, batch) for x in (*students, *teachers)]
    maps = [attention_map(x, power, frames) for x, frames in zip((*students, *teachers), valid, strict=True)]
    small = compress(
        maps[:n],
        maps[n:],
        scores=scores,
        mask=mask,
        grid=grid,
        per_frame=normalize == "frame",
        temperature=temperature,
        lengths=lengths,
        padded_length=padded_length,
    )
    grads = [
        tap_gradient(x, power, frames, map_grad=map_grad * weight / batch)
        for x, frames, map_grad, weight in zip(students, valid, small.map_grads, weights, strict=False)
    ]
    return Loss(small.distances @ weights, small.attention, grads, small.score_grads * weights[:, None] / batch)
