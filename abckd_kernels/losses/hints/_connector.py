"""What takes the student's channels to the teacher's: a matrix at every position, with batch normalisation in it.

A batch normalisation behind a linear map needs no pass over what the map gives: mean and variance of W x follow from
the mean and the covariance (C x C) of x, and normalising is another matrix and a bias. So x is read twice, the result
written once and read by the loss alone; the gradient takes as many passes. Computed in float32 (float64 for float64).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ... import backends
from ...ops.contract import connect_refusal
from ...ops.pointwise import check_parameter
from ...ops.shapes import accumulation_dtype, is_channels_last
from ..common.arithmetic import wide
from ..common.features import Padding
from ..common.normalisation import BatchNorm, running_statistics, statistics


class PositionLinear(nn.Linear):
    """A linear layer over the channels of (B, C, *spatial): a 1x1 convolution that takes any number of axes.

    relu   forward takes it: max(0, .) of the result, in place.
    """

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        return at_every_position(x, self.weight, self.bias, relu)


def at_every_position(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """weight (D, C) times x (B, C, *spatial), plus bias (D,); the result lies as x does.

    In float32, or float64 for a weight in float64; a weight in half precision is widened.
    """
    weight, bias = wide(weight), None if bias is None else wide(bias)
    return _Linear.apply(x.to(weight.dtype), weight, bias, relu)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if is_channels_last(x):
        return nn.functional.linear(x.movedim(1, -1), weight, bias).movedim(-1, 1)
    weights, rows = weight.expand(len(x), -1, -1), x.flatten(2)
    product = torch.bmm(weights, rows) if bias is None else torch.baddbmm(bias[:, None], weights, rows)
    return product.view(len(x), len(weight), *x.shape[2:])


def _of_weight(grad: Tensor, x: Tensor) -> Tensor:
    if is_channels_last(grad):
        return grad.movedim(1, -1).flatten(0, -2).T @ x.movedim(1, -1).flatten(0, -2)
    return torch.bmm(grad.flatten(2), x.flatten(2).transpose(1, 2)).sum(0)


def _of_bias(grad: Tensor) -> Tensor:
    """The sum runs along memory, which that of PyTorch's own backward does not."""
    return grad.movedim(1, -1).flatten(0, -2).sum(0) if is_channels_last(grad) else grad.flatten(2).sum(2).sum(0)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, relu):
        y = _product(x, weight, bias)
        if relu:
            y.relu_()
        ctx.save_for_backward(x, weight, y if relu else None)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, weight, y = ctx.saved_tensors
        if y is not None:
            grad = torch.ops.aten.threshold_backward(grad, y, 0)
        of_x = _product(grad, weight.T) if ctx.needs_input_grad[0] else None
        return of_x, _of_weight(grad, x), _of_bias(grad) if ctx.needs_input_grad[2] else None, None


class Connector(nn.Module):
    """A linear map over channels without bias, then batch normalisation by the valid positions.

    inputs, outputs   channels.
    eps, affine       of the batch normalisation.

    The state is that of `linear` and of `norm`, its normalisation. A bias before it would do nothing.
    """

    def __init__(self, inputs: int, outputs: int, *, eps: float = 1e-5, affine: bool = True):
        super().__init__()
        self.linear = PositionLinear(inputs, outputs, bias=False)
        self.norm = BatchNorm(outputs, eps=eps, affine=affine)

    def forward(self, x: Tensor, padding: Padding, relu: bool = False) -> Tensor:
        """(B, outputs, *spatial); what padded frames hold is of no use. `x` is zero there. relu: of the result."""
        return at_every_position(x, *self.folded(x, padding), relu)

    def sums(self, x: Tensor, t: Tensor, padding: Padding, **kind) -> Tensor:
        """As matching.sums(self(x, padding), t, padding, **kind); what the map gives is not kept."""
        return projected_sums(x, t, *self.folded(x, padding), padding, **kind)

    def folded(self, x: Tensor, padding: Padding) -> tuple[Tensor, Tensor]:
        """Matrix and bias that do both; in training the statistics are those of `x`, and the running ones follow."""
        weight = wide(self.linear.weight)
        x = x.to(weight.dtype)
        if self.training:
            mean, covariance, count = moments(x, padding)
            mean, variance = weight @ mean, ((weight @ covariance) * weight).sum(1)
            mean, variance = statistics(self.norm, mean, variance, count)
        else:
            mean, variance = running_statistics(self.norm)
        scale = (variance.clamp_min(0) + self.norm.eps).rsqrt()
        if self.norm.affine:
            scale = scale * wide(self.norm.weight)
        bias = -mean * scale
        return scale[:, None] * weight, bias + wide(self.norm.bias) if self.norm.affine else bias


def projected_sums(
    x: Tensor,
    t: Tensor,
    weight: Tensor,
    bias: Tensor,
    padding: Padding,
    *,
    kind: str,
    parameter: float | None = None,
    per_channel: Tensor | None = None,
) -> Tensor:
    """pointwise(weight x + bias, t), (B, D), a few samples at a time.

    On a CPU what the map gives never exists for the whole batch: backward computes it again, from memory near the
    processor, which costs less than to write and read it. On a GPU it exists for the moment. t is a constant.
    """
    dtype = torch.promote_types(weight.dtype, t.dtype)
    if per_channel is not None:
        per_channel = per_channel.to(accumulation_dtype(dtype))
    options = t.detach(), per_channel, kind, check_parameter(kind, parameter), *padding
    return _ProjectedSums.apply(x.to(dtype), weight.to(dtype), bias.to(dtype), *options)


CHUNK_BYTES = 4 << 20  # of what the map gives at a time: about what a processor's own cache holds


class _ProjectedSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, t, per_channel, kind, parameter, lengths, padded_length):
        ctx.save_for_backward(x, weight, bias, t, per_channel, lengths)
        ctx.options = kind, parameter, padded_length
        kernel = backends.kernel("pointwise_forward", x.device)
        sums = []
        for part, target, valid in _chunks(len(weight), x, t, lengths):
            y = _product(part, weight, bias)
            sums.append(kernel(y, target.to(y.dtype), None, per_channel, kind, parameter, valid, padded_length))
        return torch.cat(sums)

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias, t, per_channel, lengths = ctx.saved_tensors
        kind, parameter, padded_length = ctx.options
        kernel = backends.kernel("pointwise_backward", x.device)
        of_x, of_weight, of_bias = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(bias)
        for part, target, valid, upstream, result in _chunks(len(weight), x, t, lengths, grad, of_x):
            y = _product(part, weight, bias)
            target = target.to(y.dtype)
            own, _ = kernel(upstream, y, target, None, per_channel, kind, parameter, valid, padded_length)
            result.copy_(_product(own, weight.T))
            of_weight, of_bias = of_weight + _of_weight(own, part), of_bias + _of_bias(own)
        fresh = (connect_refusal(result, x, weight, bias, grad) for result in (of_x, of_weight, of_bias))
        return *fresh, *[None] * 6


def _chunks(channels: int, x: Tensor, *others: Tensor | None):
    """Parts of `x` and the others along the batch: as many samples as with so many channels fill CHUNK_BYTES.

    One part where there is no cache to mind, which on a GPU would be many small launches.
    """
    sample = channels * x.shape[2:].numel() * x.element_size()
    size = max(1, CHUNK_BYTES // sample if x.device.type == "cpu" else len(x))
    for first in range(0, max(len(x), 1), size):
        yield tuple(None if value is None else value[first : first + size] for value in (x, *others))


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
    mean = x.new_zeros(x.shape[1], dtype=accumulation_dtype(x.dtype))
    variance = torch.zeros_like(mean)
    for part, inside in _chunks(x.shape[1], x, valid):
        mean = mean + _rows(part, inside).sum(2).sum(0) / _divisor(count)
    for part, inside in _chunks(x.shape[1], x, valid):
        centred = _rows(_rows(part, inside) - mean[:, None], inside)
        variance = variance + torch.linalg.vector_norm(centred, dim=2).square().sum(0) / _divisor(count)
    return mean, variance, count


def _rows(x: Tensor, valid: Tensor | None) -> Tensor:
    """(B, C, N) in the dtype of sums, zero where a position is not valid."""
    x = x.to(accumulation_dtype(x.dtype)).flatten(2)
    return x if valid is None else x.masked_fill(~valid[:, None], 0)


def _valid_positions(x: Tensor, padding: Padding) -> tuple[Tensor | None, Tensor | int]:
    """(B, N), true where a position is valid, or None where all are; how many are in the batch."""
    valid = padding.position_mask(x)
    return valid, x.shape[0] * x.shape[2:].numel() if valid is None else valid.sum()


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
        covariance = 0
        for part, inside in _chunks(x.shape[1], x, valid):
            centred = _rows(part - mean[:, None], inside)
            covariance = covariance + torch.bmm(centred, centred.transpose(1, 2)).sum(0) / divisor
        return mean, covariance

    @staticmethod
    def backward(ctx, mean_grad, covariance_grad):
        x, valid, mean = ctx.saved_tensors
        matrix = (covariance_grad + covariance_grad.T) / ctx.divisor
        shift = mean_grad / ctx.divisor - matrix @ mean
        grad = torch.baddbmm(shift[:, None], matrix.expand(len(x), -1, -1), x)
        grad = grad if valid is None else grad * valid[:, None]
        return connect_refusal(grad, x, mean_grad, covariance_grad), None, None
