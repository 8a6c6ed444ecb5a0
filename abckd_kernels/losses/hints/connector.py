"""What takes the student's channels to the teacher's: a matrix at every position, with batch normalisation in it.

A batch normalisation behind a linear map needs no pass over what the map gives: mean and variance of W x follow from
the mean and the covariance (C x C) of x, and normalising is another matrix and a bias. So x is read twice, the result
written once and read by the loss alone; the gradient takes as many passes. Computed in float32 (float64 for float64).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...ops.shapes import accumulation_dtype, is_channels_last
from ..features import Padding


class PositionLinear(nn.Linear):
    """A linear layer over the channels of (B, C, *spatial): a 1x1 convolution that takes any number of axes."""

    def forward(self, x: Tensor) -> Tensor:
        return at_every_position(x, self.weight, self.bias)


def at_every_position(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """weight (D, C) times x (B, C, *spatial), of the same dtype, plus bias (D,); the result lies as x does."""
    if is_channels_last(x):
        return nn.functional.linear(x.movedim(1, -1), weight, bias).movedim(-1, 1)
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return _Linear.apply(x.flatten(2), weight, bias).view(len(x), len(weight), *x.shape[2:])


class _Linear(torch.autograd.Function):
    """As PyTorch's, of (B, C, N), but for the gradient of the bias, whose sum runs along memory here."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return torch.baddbmm(bias[:, None], weight.expand(len(x), -1, -1), x)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            torch.bmm(weight.T.expand(len(x), -1, -1), grad) if of_x else None,
            torch.bmm(grad, x.transpose(1, 2)).sum(0) if of_weight else None,
            grad.sum(2).sum(0) if of_bias else None,
        )


class Connector(nn.Module):
    """A linear map over channels without bias, then batch normalisation by the valid positions.

    inputs, outputs   channels.
    eps, affine       of the batch normalisation.

    The state is that of `linear` and of `norm`, an nn.BatchNorm1d. A bias before the normalisation would do nothing.
    """

    def __init__(self, inputs: int, outputs: int, *, eps: float = 1e-5, affine: bool = True):
        super().__init__()
        self.linear = PositionLinear(inputs, outputs, bias=False)
        self.norm = nn.BatchNorm1d(outputs, eps=eps, affine=affine)

    def forward(self, x: Tensor, padding: Padding) -> Tensor:
        """(B, outputs, *spatial); what padded frames hold is of no use. `x` has the parameters' dtype, zero there."""
        return at_every_position(x, *self.folded(x, padding))

    def folded(self, x: Tensor, padding: Padding) -> tuple[Tensor, Tensor]:
        """Matrix and bias that do both; in training the statistics are those of `x`, and the running ones follow."""
        weight = self.linear.weight
        if self.training:
            mean, covariance, count = moments(x, padding)
            mean, variance = weight @ mean, ((weight @ covariance) * weight).sum(1)
            follow(self.norm, mean, variance, count)
        else:
            mean, variance = self.norm.running_mean, self.norm.running_var
        scale = (variance.clamp_min(0) + self.norm.eps).rsqrt()
        if self.norm.affine:
            scale = scale * self.norm.weight
        bias = -mean * scale
        return scale[:, None] * weight, bias + self.norm.bias if self.norm.affine else bias


@torch.no_grad()
def follow(norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor, count: Tensor | int) -> None:
    """Move the running statistics towards those of a batch, as PyTorch does; an empty batch moves nothing."""
    if not isinstance(count, Tensor):
        count = torch.tensor(count, device=mean.device)
    rate = norm.momentum * (count > 0)
    norm.num_batches_tracked += 1
    norm.running_mean += rate * (mean - norm.running_mean)
    norm.running_var += rate * (variance * (count / (count - 1).clamp_min(1)) - norm.running_var)


def moments(x: Tensor, padding: Padding) -> tuple[Tensor, Tensor, Tensor | int]:
    """Mean (C,) and covariance (C, C) over the valid positions of the batch, and how many they are.

    x   (B, C, *spatial), zero in padded frames.
    """
    valid, count = _valid_positions(x, padding)
    mean, covariance = _Moments.apply(x.flatten(2), valid, count)
    return mean, covariance, count


@torch.no_grad()
def channel_moments(x: Tensor, padding: Padding) -> tuple[Tensor, Tensor, Tensor | int]:
    """As `moments`, but each channel's variance (C,) alone, of any `x`, without a gradient."""
    valid, count = _valid_positions(x, padding)
    x = padding.zeroed(x).to(accumulation_dtype(x.dtype)).flatten(2)
    mean = x.sum(2).sum(0) / _divisor(count)
    centred = x - mean[:, None]
    if valid is not None:
        centred *= valid[:, None]
    return mean, torch.linalg.vector_norm(centred, dim=2).square().sum(0) / _divisor(count), count


def _valid_positions(x: Tensor, padding: Padding) -> tuple[Tensor | None, Tensor | int]:
    """(B, N), true where a position is valid, or None where all are; how many are in the batch."""
    mask = padding.mask(x)
    if mask is None:
        return None, x.shape[0] * x.shape[2:].numel()
    valid = mask.repeat_interleave(x.shape[2:].numel() // x.shape[2], 1)
    return valid, valid.sum()


def _divisor(count: Tensor | int) -> Tensor | int:
    return count.clamp_min(1) if isinstance(count, Tensor) else max(count, 1)


class _Moments(torch.autograd.Function):
    """Covariance around the mean: differences of large second moments would lose digits where |mean| is large."""

    @staticmethod
    def forward(ctx, x, valid, count):
        divisor = _divisor(count)
        mean = x.sum(2).sum(0) / divisor
        ctx.save_for_backward(x, valid, mean)
        ctx.divisor = divisor
        centred = x - mean[:, None]
        if valid is not None:
            centred *= valid[:, None]
        return mean, torch.bmm(centred, centred.transpose(1, 2)).sum(0) / divisor

    @staticmethod
    def backward(ctx, mean_grad, covariance_grad):
        x, valid, mean = ctx.saved_tensors
        matrix = (covariance_grad + covariance_grad.T) / ctx.divisor
        shift = mean_grad / ctx.divisor - matrix @ mean
        grad = torch.baddbmm(shift[:, None], matrix.expand(len(x), -1, -1), x)
        return (grad if valid is None else grad * valid[:, None]), None, None
