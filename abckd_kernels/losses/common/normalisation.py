"""Layers that the learned parts of several losses share. All compute in float32 (float64 for float64).

Weights and statistics may be in half precision, all of them (`loss.half()`) or the weights alone (FSDP2's policies):
they are widened where they are used, and gradients come back in the weights' dtype. Batch normalisations take the
running statistics where a batch has fewer than two positions, of which no variance can be known.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .arithmetic import wide
from .features import Padding

ALL_FRAMES = Padding(None, 1)


class ValidBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of (B, C, *spatial) by the valid positions' statistics; the other frames become zero."""

    def forward(self, x: Tensor, padding: Padding) -> Tensor:
        rows, valid = wide(x).flatten(2), padding.position_mask(x)
        count = rows.shape[0] * rows.shape[2] if valid is None else valid.sum()
        plain = valid is None and self.weight.dtype == self.running_mean.dtype == rows.dtype
        if plain and (not self.training or count > 1):
            return super().forward(rows).view_as(x)
        weight, bias = wide(self.weight), None if self.bias is None else wide(self.bias)
        valid = None if valid is None else valid[:, None]
        if self.training:
            divisor = max(count, 1) if isinstance(count, int) else count.clamp_min(1)
            mean = _kept(rows, valid).sum((0, 2)) / divisor
            variance = _kept(rows - mean[:, None], valid).square().sum((0, 2)) / divisor
            mean, variance = statistics(self, mean, variance, count)
        else:
            mean, variance = wide(self.running_mean), wide(self.running_var)
        scale = weight * (variance + self.eps).rsqrt()
        result = (rows - mean[:, None]) * scale[:, None]
        return _kept(result if bias is None else result + bias[:, None], valid).view_as(x)


def _kept(rows: Tensor, valid: Tensor | None) -> Tensor:
    return rows if valid is None else rows * valid


def statistics(norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor, count: Tensor | int) -> tuple[Tensor, Tensor]:
    """Mean and variance to normalise a training batch by: its own ones, which the running ones follow as in PyTorch.

    Fewer than two positions (`count`) have the running ones, which then stay.
    """
    running = wide(norm.running_mean), wide(norm.running_var)
    norm.num_batches_tracked += 1
    if isinstance(count, int):
        if count < 2:
            return running
        rate, correction = norm.momentum, count / (count - 1)
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
        weight = wide(self.weight)
        return nn.functional.linear(x.to(weight.dtype), weight, None if self.bias is None else wide(self.bias))


class NormalisedLinear(nn.Module):
    """A linear layer and a batch normalisation of vectors (R, C).

    The linear layer has no bias, since the normalisation would take it off again; `bias` is that after it.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True):
        super().__init__()
        self.linear, self.norm = Linear(inputs, outputs, bias=False), ValidBatchNorm(outputs)
        if not bias:
            self.norm.bias = None

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


class _Convolution:
    """What all convolutions here share."""

    def forward(self, x: Tensor) -> Tensor:
        weight = wide(self.weight)
        return self.convolve(x.to(weight.dtype), weight, None if self.bias is None else wide(self.bias))

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x, weight, bias)


class _Transposed(_Convolution):
    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        function = nn.functional.conv_transpose1d if x.dim() == 3 else nn.functional.conv_transpose2d
        return function(x, weight, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation)


class Conv1d(_Convolution, nn.Conv1d):
    """A convolution over (B, C, T)."""


class Conv2d(_Convolution, nn.Conv2d):
    """A convolution over (B, C, T, F)."""


class ConvTranspose1d(_Transposed, nn.ConvTranspose1d):
    """A transposed convolution over (B, C, T)."""


class ConvTranspose2d(_Transposed, nn.ConvTranspose2d):
    """A transposed convolution over (B, C, T, F)."""


def convolution(spatial_axes: int, transposed: bool = False) -> type[nn.Module]:
    """The class of a convolution over (B, C, T) or (B, C, T, F). Raises ValueError."""
    if spatial_axes not in (1, 2):
        raise ValueError(f"spatial_axes: expected 1 or 2, got {spatial_axes!r}")
    of_axes = (ConvTranspose1d, ConvTranspose2d) if transposed else (Conv1d, Conv2d)
    return of_axes[spatial_axes - 1]
