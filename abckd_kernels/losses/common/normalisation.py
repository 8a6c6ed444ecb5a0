"""Layers that the learned parts of several losses share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .features import Padding


class ValidBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of (B, C, *spatial) by the valid positions' statistics; the other frames become zero."""

    def forward(self, x: Tensor, padding: Padding) -> Tensor:  # type: ignore[override]
        rows, valid = x.flatten(2), padding.position_mask(x)
        if valid is None:
            return super().forward(rows).view_as(x)
        valid = valid[:, None]
        if not self.training:
            return (super().forward(rows) * valid).view_as(x)
        count = valid.sum().clamp_min(1)
        mean = (rows * valid).sum((0, 2)) / count
        centred = (rows - mean[:, None]) * valid
        variance = centred.square().sum((0, 2)) / count
        follow(self, mean, variance, count)
        scale = self.weight * (variance + self.eps).rsqrt()
        return ((centred * scale[:, None] + self.bias[:, None]) * valid).view_as(x)


def running_statistics(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Running mean and variance; the normalisations here all have them."""
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.running_mean, norm.running_var


@torch.no_grad()
def follow(norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor, count: Tensor | int) -> None:
    """Move the running statistics towards those of a batch, as PyTorch does; an empty batch moves nothing."""
    running_mean, running_variance = running_statistics(norm)
    assert norm.momentum is not None and norm.num_batches_tracked is not None
    if not isinstance(count, Tensor):
        count = mean.new_full((), count)
    rate = norm.momentum * (count > 0).to(mean.dtype)
    norm.num_batches_tracked += 1
    running_mean += rate * (mean - running_mean)
    running_variance += rate * (variance * (count / (count - 1).clamp_min(1)) - running_variance)


class NormalisedLinear(nn.Module):
    """A linear layer and a batch normalisation of vectors (R, C); fewer than two rows have the running statistics.

    The linear layer has no bias, since the normalisation would take it off again; `bias` is that behind it.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True):
        super().__init__()
        self.linear, self.norm = nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs)
        if not bias:
            self.norm.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        y, norm = self.linear(x), self.norm
        if self.training and len(y) < 2:
            return nn.functional.batch_norm(
                y, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False, eps=norm.eps
            )
        return norm(y)


class InstanceNorm(nn.Module):
    """Normalisation of each channel of each sample over its valid positions, with a learned scale and shift."""

    def __init__(self, channels: int, *, eps: float = 1e-5):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor, padding: Padding) -> Tensor:
        rows, valid = x.flatten(2), padding.position_mask(x)
        if valid is None:
            return nn.functional.layer_norm(rows, rows.shape[2:], eps=self.eps).mul(self.weight[:, None]).add(
                self.bias[:, None]
            ).view_as(x)  # fmt: skip
        valid = valid[:, None]
        count = valid.sum(2, keepdim=True).clamp_min(1)
        centred = (rows - (rows * valid).sum(2, keepdim=True) / count) * valid
        variance = centred.square().sum(2, keepdim=True) / count
        scale = self.weight[:, None] * (variance + self.eps).rsqrt()
        return ((centred * scale + self.bias[:, None]) * valid).view_as(x)


def convolution(spatial_axes: int, transposed: bool = False) -> type[nn.Module]:
    """The class of a convolution over (B, C, T) or (B, C, T, F). Raises ValueError."""
    if spatial_axes not in (1, 2):
        raise ValueError(f"spatial_axes: expected 1 or 2, got {spatial_axes!r}")
    of_axes = (nn.ConvTranspose1d, nn.ConvTranspose2d) if transposed else (nn.Conv1d, nn.Conv2d)
    return of_axes[spatial_axes - 1]
