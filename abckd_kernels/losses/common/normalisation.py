"""Layers that the learned parts of several losses share. All compute in float32 (float64 for float64).

Weights and statistics may be in half precision, all of them (`loss.half()`) or the weights alone (FSDP2's policies):
they are widened where they are used, and gradients come back in the weights' dtype. Batch normalisations take the
running statistics where a batch has fewer than two positions, of which no variance can be known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import overload

import torch
from torch import Tensor, nn

from .arithmetic import wide
from .features import Padding

ALL_FRAMES = Padding(None, 1)


class BatchNorm(nn.BatchNorm1d):
    """A batch normalisation that has running statistics, which follow at a fixed rate."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def __init__(self, channels: int, *, eps: float = 1e-5, affine: bool = True):
        super().__init__(channels, eps=eps, affine=affine)


class ValidBatchNorm(BatchNorm):
    """Batch normalisation of (B, C, *spatial) by the valid positions' statistics; the other frames become zero."""

    def forward(self, x: Tensor, padding: Padding) -> Tensor:  # type: ignore[override]
        rows, valid = wide(x).flatten(2), padding.position_mask(x)
        count = rows.shape[0] * rows.shape[2] if valid is None else valid.sum()
        plain = valid is None and self.weight.dtype == self.running_mean.dtype == rows.dtype
        if plain and (not self.training or count > 1):
            return super().forward(rows).view_as(x)
        weight, bias = wide(self.weight), None if self.bias is None else wide(self.bias)
        valid = None if valid is None else valid[:, None]
        if self.training:
            divisor = max(count, 1) if isinstance(count, int) else count.clamp_min(1)
            mean = _zeroed(rows, valid).sum((0, 2)) / divisor
            variance = _zeroed(rows - mean[:, None], valid).square().sum((0, 2)) / divisor
            mean, variance = statistics(self, mean, variance, count)
        else:
            mean, variance = running_statistics(self)
        scale = weight * (variance + self.eps).rsqrt()
        result = (rows - mean[:, None]) * scale[:, None]
        return _zeroed(result if bias is None else result + bias[:, None], valid).view_as(x)


def running_statistics(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Running mean and variance, widened."""
    return wide(norm.running_mean), wide(norm.running_var)


def _zeroed(rows: Tensor, valid: Tensor | None) -> Tensor:
    return rows if valid is None else rows * valid


def statistics(norm: BatchNorm, mean: Tensor, variance: Tensor, count: Tensor | int) -> tuple[Tensor, Tensor]:
    """Mean and variance to normalise a training batch by: its own ones, which the running ones follow as in PyTorch.

    Fewer than two positions (`count`) have the running ones, which then stay.
    """
    running = running_statistics(norm)
    norm.num_batches_tracked += 1
    if isinstance(count, int):
        if count < 2:
            return running
        rate: Tensor | float = norm.momentum
        correction: Tensor | float = count / (count - 1)
    else:
        few = count < 2
        mean, variance = torch.where(few, running[0], mean), torch.where(few, running[1], variance)
        rate, correction = norm.momentum * ~few, count / (count - 1).clamp_min(1)
    with torch.no_grad():
        norm.running_mean.copy_(running[0] + rate * (mean - running[0]))
        norm.running_var.copy_(running[1] + rate * (variance * correction - running[1]))
    return mean, variance


class Linear(nn.Linear):
    """A linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(*_widened(x, self.weight, self.bias))


class NormalisedLinear(nn.Module):
    """A linear layer and a batch normalisation of vectors (R, C).

    The linear layer has no bias, since the normalisation would take it off again; `bias` is that after it.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True):
        super().__init__()
        self.linear, self.norm = Linear(inputs, outputs, bias=False), ValidBatchNorm(outputs)
        if not bias:
            self.norm.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x)[..., None], ALL_FRAMES)[..., 0]


class InstanceNorm(nn.Module):
    """Normalisation of each channel of each sample over its valid positions, with a learned scale and shift."""

    def __init__(self, channels: int, *, eps: float = 1e-5):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor, padding: Padding) -> Tensor:
        rows, valid = wide(x).flatten(2), padding.position_mask(x)
        weight, bias = wide(self.weight)[:, None], wide(self.bias)[:, None]
        if valid is None:
            return (nn.functional.layer_norm(rows, rows.shape[2:], eps=self.eps) * weight + bias).view_as(x)
        valid = valid[:, None]
        count = valid.sum(2, keepdim=True).clamp_min(1)
        centred = (rows - (rows * valid).sum(2, keepdim=True) / count) * valid
        variance = centred.square().sum(2, keepdim=True) / count
        scale = weight * (variance + self.eps).rsqrt()
        return ((centred * scale + bias) * valid).view_as(x)


class Conv1d(nn.Conv1d):
    """A convolution over (B, C, T)."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(*_widened(x, weight, bias))


class Conv2d(nn.Conv2d):
    """A convolution over (B, C, T, F)."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(*_widened(x, weight, bias))


class ConvTranspose1d(nn.ConvTranspose1d):
    """A transposed convolution over (B, C, T)."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        x, weight, bias = _widened(x, self.weight, self.bias)
        return nn.functional.conv_transpose1d(
            x, weight, bias, self.stride, self.padding,  # type: ignore[arg-type]
            self.output_padding, self.groups, self.dilation,
        )  # fmt: skip


class ConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution over (B, C, T, F)."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        x, weight, bias = _widened(x, self.weight, self.bias)
        return nn.functional.conv_transpose2d(
            x, weight, bias, self.stride, self.padding,  # type: ignore[arg-type]
            self.output_padding, self.groups, self.dilation,
        )  # fmt: skip


def _widened(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    weight = wide(weight)
    return x.to(weight.dtype), weight, None if bias is None else wide(bias)


@overload
def convolution(spatial_axes: int) -> Callable[..., Conv1d | Conv2d]: ...
@overload
def convolution(
    spatial_axes: int, transposed: bool
) -> Callable[..., Conv1d | Conv2d | ConvTranspose1d | ConvTranspose2d]: ...
def convolution(spatial_axes: int, transposed: bool = False) -> Callable:
    """The class of a convolution over (B, C, T) or (B, C, T, F). Raises ValueError."""
    if spatial_axes not in (1, 2):
        raise ValueError(f"spatial_axes: expected 1 or 2, got {spatial_axes!r}")
    of_axes = (ConvTranspose1d, ConvTranspose2d) if transposed else (Conv1d, Conv2d)
    return of_axes[spatial_axes - 1]
