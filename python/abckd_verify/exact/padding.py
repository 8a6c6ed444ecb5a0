"""Which frames count, in plain PyTorch, apart from the library."""

from __future__ import annotations

import torch
from torch import Tensor


def valid_frames(lengths: Tensor, frames: int, padded_length: int) -> Tensor:
    """ceil(length * frames / padded_length) for each sample, at most `frames`."""
    return (-(-lengths * frames // padded_length)).clamp(0, frames)


def masked(x: Tensor, lengths: Tensor | None, padded_length: int, axis: int = 2) -> Tensor:
    """`x` with zeros in the frames, along `axis`, that are not valid."""
    if lengths is None:
        return x
    valid = valid_frames(lengths, x.shape[axis], padded_length)
    inside = torch.arange(x.shape[axis], device=x.device) < valid[:, None]
    return torch.where(inside.view(len(x), *[1] * (axis - 1), -1, *[1] * (x.dim() - axis - 1)), x, 0)


def positions(x: Tensor, lengths: Tensor | None, padded_length: int, axis: int = 2) -> Tensor | int:
    """Valid positions of each sample's channel, at least 1: along `axis` and those behind it."""
    per_frame = x.shape[axis + 1 :].numel()
    if lengths is None:
        return x.shape[axis] * per_frame
    return (valid_frames(lengths, x.shape[axis], padded_length) * per_frame).clamp(min=1)
