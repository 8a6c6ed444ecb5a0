"""tap in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shapes import accumulation_dtype, broadcast_mask, dense, empty_like, valid_frames


def forward(
    features: list[Tensor], power: int, means: bool, lengths: Tensor | None, padded_length: int
) -> tuple[list[Tensor], list[Tensor]]:
    maps, channel_means = [], []
    for x in features:
        x = x.to(accumulation_dtype(x.dtype))
        mask = broadcast_mask(x, lengths, padded_length)
        if mask is not None:
            x = x.masked_fill(~mask, 0)
        maps.append((x.square() if power == 2 else x.abs()).mean(1))
        if means:
            channel_means.append(x.flatten(2).sum(2) / _valid_positions(x, lengths, padded_length))
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
    results = []
    for grad, feature, map_grad, mean_grad in zip(grads, features, map_grads, mean_grads, strict=True):
        x = dense(feature).to(accumulation_dtype(feature.dtype))
        result = torch.zeros_like(x)
        if map_grad is not None:
            result += (2 * x if power == 2 else x.sign()) * (map_grad / x.shape[1]).unsqueeze(1)
        if mean_grad is not None:
            result += (mean_grad / _valid_positions(x, lengths, padded_length)).reshape(
                *x.shape[:2], *[1] * (x.dim() - 2)
            )
        mask = broadcast_mask(x, lengths, padded_length)
        if mask is not None:
            result = result.masked_fill(~mask, 0)
        if grad is not None:
            result += grad
        results.append(empty_like(feature).copy_(result))
    return results


def _valid_positions(x: Tensor, lengths: Tensor | None, padded_length: int) -> Tensor | int:
    """Positions that a channel mean averages: a number, or (B, 1) where lengths differ; at least one."""
    positions = x[0, 0].numel() if x.shape[0] else 1
    if lengths is None:
        return positions
    return (valid_frames(lengths, x.shape[2], padded_length)[:, None] * (positions // x.shape[2])).clamp(min=1)
