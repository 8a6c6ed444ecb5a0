"""Hints behind a learned projection of the student's channels: HintLoss, and the published regressors (ConvReg).

A linear regressor, with or without batch normalisation, never writes what it makes: op `project` compares it with the
teacher tile by tile.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...ops import project
from ..common.arithmetic import wide
from ..common.checks import both_or_neither, check_choice
from ..common.features import Padding, batch_mean, on_one_grid, weighted
from ..common.modules import Configured
from ..common.normalisation import ValidBatchNorm, convolution
from ._connector import Connector, PositionLinear
from ._matching import Channels, Learned, channel_pairs, element_mean, sums
from .regression import hint_loss

REGRESSORS = ("linear", "batch_norm", "relu")


class HintLoss(Configured, function=hint_loss):
    """hint_loss with its options chosen once; with channels, behind a learned regressor per layer.

    FitNets: Romero et al., ICLR 2015.

    student_channels, teacher_channels   C, lists of n for n layers; None: no regressor, channels agree.
    regressor   "linear": a matrix over channels and a bias, a 1x1 convolution. The default, since the loss can reach
                zero for any teacher.
                "batch_norm": a matrix over channels, then batch normalisation by the valid positions.
                "relu": that and ReLU, published as ConvReg (RepDistiller, mdistiller) for features of equal size; the
                teacher's features must come behind a ReLU, too, or the loss can't reach zero.
                a module or a list of one per layer: `ConvReg`, or any that takes (feature, padding).
    weights     as in hint_loss.

    Where sizes differ both features are averaged over the windows of adaptive pooling onto the smaller size of each
    axis, before the regressor, or behind it if it is a module.

    Traffic: "linear" reads S and T once forward, both once backward, and writes the gradient of S; "batch_norm" reads S
    twice more in each direction; so does "relu", which makes the projection a few samples at a time. A module writes
    what it makes, and keeps it for backward.
    """

    def __init__(
        self,
        student_channels: Channels | None = None,
        teacher_channels: Channels | None = None,
        *,
        regressor: str | nn.Module | Sequence[nn.Module] = "linear",
        weights: Sequence[float] | Tensor | None = None,
    ):
        super().__init__(**({} if weights is None else {"weights": weights}))
        given: tuple[Channels, Channels] | None = both_or_neither("channels", student_channels, teacher_channels)
        self.regressed: Learned | None = None
        if given is not None:
            channels = channel_pairs(*given)
            if not isinstance(regressor, str):
                self.regressed = _Regressed(_one_per_layer(regressor, len(channels)), channels, weights)
                return
            check_choice("regressor", regressor, REGRESSORS)
            make = PositionLinear if regressor == "linear" else Connector
            form = _Rectified if regressor == "relu" else _Projected
            self.regressed = form([make(*pair) for pair in channels], channels, {"weights": weights})

    def forward(self, student_features, teacher_features, *, lengths=None, padded_length=None):
        """The loss of these features; arguments as in hint_loss."""
        form = super().forward if self.regressed is None else self.regressed
        return form(student_features, teacher_features, lengths=lengths, padded_length=padded_length)


def _one_per_layer(regressors: nn.Module | Sequence[nn.Module], count: int) -> list[nn.Module]:
    found = [regressors] if isinstance(regressors, nn.Module) else list(regressors)
    if len(found) != count or not all(isinstance(x, nn.Module) for x in found):
        raise ValueError(
            f"regressor: expected one of {REGRESSORS} or {count} modules, one per layer, got {regressors!r}"
        )
    return found


class _Projected(Learned):
    """What is linear in the student's features: compared as it is made."""

    def measured(self, layer, s, t, padding):
        folds = isinstance(layer, Connector)
        weight, bias = layer.folded(s, padding) if folds else (wide(layer.weight), wide(layer.bias))
        errors = project(s, weight, t, bias=bias, lengths=padding.lengths, padded_length=padding.padded_length)
        return errors / (t.shape[1] * padding.positions(t)), t

    def loss(self, found, padding):
        return weighted([batch_mean(error) for error, _ in found], self.options["weights"], found)


class _Rectified(Learned):
    def measured(self, layer, s, t, padding):
        return layer.sums(s, t, padding, kind="rectified"), t

    def loss(self, found, padding):
        losses = [batch_mean(element_mean(of_channels, t, padding)) for of_channels, t in found]
        return weighted(losses, self.options["weights"], found)


class _Regressed(_Rectified):
    """Modules that may change sizes: they see the student's features as they are."""

    def __init__(self, regressors: list[nn.Module], channels: list[tuple[int, int]], weights):
        super().__init__(regressors, channels, {"weights": weights})

    def on_one_grid(self, layer, s, t, padding):
        return s, t

    def measured(self, layer, s, t, padding):
        s, t = on_one_grid(layer(s, padding), t, padding, zeroed=False)
        return sums(s, t, padding), t


class ConvReg(nn.Module):
    """FitNets' regressor as RepDistiller and mdistiller have it: a convolution, batch normalisation, ReLU.

    student_channels, teacher_channels     C.
    kernel_size, stride, padding           of the convolution, which has no bias: the normalisation would take it away.
    transposed                             a transposed convolution, which enlarges.
    spatial_axes                           1 for (B, C, T), 2 for (B, C, T, F).

    The statistics are those of the valid positions. `between` chooses the convolution as published.
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        *,
        kernel_size: int | tuple[int, ...] = 1,
        stride: int = 1,
        padding: int = 0,
        transposed: bool = False,
        spatial_axes: int = 2,
    ):
        super().__init__()
        self.convolution = convolution(spatial_axes, transposed)(
            student_channels, teacher_channels, kernel_size, stride, padding, bias=False
        )
        self.norm = ValidBatchNorm(teacher_channels)

    @classmethod
    def between(cls, student_shape: Sequence[int], teacher_shape: Sequence[int]) -> ConvReg:
        """The published regressor for features of these shapes (B, C, *spatial).

        Frames tell which: T_s = 2 T_t: 3x3, stride 2. 2 T_s = T_t: transposed, 4x4, stride 2. T_s >= T_t: a kernel of
        1 + T_s - T_t by 1 + F_s - F_t, 1x1 for equal sizes. Raises ValueError for others; HintLoss pools them.
        """
        (_, channels, *sizes), (_, teacher_channels, *teacher_sizes) = student_shape, teacher_shape
        if len(sizes) != len(teacher_sizes):
            raise ValueError(f"teacher_shape: expected {len(sizes) + 2} axes, got {tuple(teacher_shape)}")
        regressor = functools.partial(cls, channels, teacher_channels, spatial_axes=len(sizes))
        if sizes[0] == 2 * teacher_sizes[0]:
            return regressor(kernel_size=3, stride=2, padding=1)
        if 2 * sizes[0] == teacher_sizes[0]:
            return regressor(kernel_size=4, stride=2, padding=1, transposed=True)
        kernel = tuple(1 + s - t for s, t in zip(sizes, teacher_sizes, strict=True))
        if min(kernel) < 1:
            raise ValueError(f"teacher_shape: no published regressor from {tuple(sizes)} to {tuple(teacher_sizes)}")
        return regressor(kernel_size=kernel)

    def forward(self, x: Tensor, padding: Padding) -> Tensor:
        """(B, teacher_channels, *sizes); padded frames of `x` must be zero."""
        return torch.relu(self.norm(self.convolution(x), padding))
