"""Knowledge review: a distance on several grids (HCL), and the fusion of the student's layers in front of it (ABF)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...ops import pyramid
from ...ops.pyramid import check_levels
from ..common.arithmetic import wide
from ..common.checks import both_or_neither, check_choice
from ..common.features import Padding, batch_mean, pairs, weighted, without_autocast
from ..common.modules import Configured
from ..common.normalisation import InstanceNorm, ValidBatchNorm, convolution
from ._connector import Connector, PositionLinear
from ._matching import EVERYWHERE, Channels, Features, channel_pairs, matched

NORMS = ("batch", "instance")


def review_loss(
    student_features: Features,
    teacher_features: Features,
    *,
    levels: Sequence[int] = (4, 2, 1),
    fit: str = "smallest",
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Hierarchical context loss of "Distilling Knowledge via Knowledge Review" (Chen et al., CVPR 2021).

    d = s - t, L = [mean d^2 + sum_l w_l mean pool_l(d)^2] / (1 + sum_l w_l) for the levels l that fit: pool_l averages
    over the windows of adaptive pooling onto l x l cells (l over frames alone for (B, C, T)); w_l = 1/2, 1/4, 1/8 for
    the first, second, third level that is used. Pooling is linear, so the difference is pooled, once.

    student_features   a feature (B, C, T), (B, C, T, F) or (B, C, H, W), or a list of n; float32, float64, bfloat16 or
                       float16. Channels are the teacher's (`ReviewLoss` fuses and projects). Sizes may differ: both are
                       averaged over adaptive windows onto the smaller size of each axis.
    teacher_features   as many; detached.
    levels             positive numbers, the cells of each axis.
    fit                which levels are used. "smallest": l below every spatial size. "frames": l below T, whatever F:
                       as published, where a level that F does not reach repeats bands.
    lengths            (B,) integers: valid frames; each sample's grids lie over those alone, as if it were cut there.
    padded_length      the frames to which lengths refer; default: T of the feature with most.
    weights            n numbers; default 1/n. Published code adds up the layers: weights=[1] * n.

    Returns a scalar in float32 (float64 if a feature is). Raises TypeError or ValueError that names the argument.

    ReviewKD, mdistiller and torchdistill are fit="frames", weights=[1] * n; with T, F > 4 the fit changes nothing.

    Traffic: forward reads S and T once, backward reads both once and writes the gradient of S.
    """
    found, padding = matched(student_features, teacher_features, lengths, padded_length)
    return _review(found, padding, levels, fit, weights)


def _review(found, padding: Padding, levels: Sequence[int] = (4, 2, 1), fit: str = "smallest", weights=None) -> Tensor:
    check_choice("fit", fit, ("smallest", "frames"))
    check_levels(levels)
    losses = []
    for s, t in found:
        bands = s.shape[3] if s.dim() == 4 and fit == "smallest" else 1
        used = [level for level in levels if bands == 1 or level < bands]
        losses.append(batch_mean(pyramid(s, t, levels=used, **padding._asdict())))
    return weighted(losses, weights, found)


class ReviewLoss(Configured, function=review_loss):
    """review_loss with its options chosen once; with channels, behind the fusion of the student's layers (`ABF`).

    student_channels, teacher_channels   C of each layer, the deepest last; None: no fusion, channels agree.
    hidden, norm, spatial_axes           as in ABF.
    options                              as in review_loss.
    """

    def __init__(
        self,
        student_channels: Channels | None = None,
        teacher_channels: Channels | None = None,
        *,
        hidden: int | None = None,
        norm: str = "batch",
        spatial_axes: int = 2,
        **options,
    ):
        super().__init__(**options)
        channels: tuple[Channels, Channels] | None = both_or_neither("channels", student_channels, teacher_channels)
        self.fusion = None
        if channels is not None:
            self.fusion = ABF(*channels, hidden=hidden, norm=norm, spatial_axes=spatial_axes)

    def forward(self, student_features, teacher_features, *, lengths=None, padded_length=None):
        """The loss of these features; arguments as in review_loss."""
        if self.fusion is not None:
            found, padding = pairs(student_features, teacher_features, lengths, padded_length, zeroed=False)
            students, teachers = zip(*found, strict=True)
            fused = self.fusion(students, [t.shape[2:] for t in teachers], padding)
            return _review(list(zip(fused, teachers, strict=True)), padding, weights=self.weights, **self.options)
        return super().forward(student_features, teacher_features, lengths=lengths, padded_length=padded_length)


class ABF(nn.Module):
    """Attention-based fusion (Chen et al., CVPR 2021): each layer, reduced to common channels, is mixed with what the
    deeper ones left, by two attention maps; a 3x3 convolution takes the mixture to the teacher's channels.

    student_channels, teacher_channels   C of each layer, the deepest last.
    hidden                               the common channels; default: the most that the student has.
    norm          "batch": batch normalisation by the valid positions, as published. "instance": by each sample's own
                  ones, and PReLU, as in I2RF-TFCKD.
    spatial_axes  1 for (B, C, T), 2 for (B, C, T, F).

    The state dict depends on no size. Published code (ReviewKD for classification, mdistiller, torchdistill) resizes to
    squares; here T and F have their own sizes, which for square features is the same.
    """

    def __init__(
        self,
        student_channels: Channels,
        teacher_channels: Channels,
        *,
        hidden: int | None = None,
        norm: str = "batch",
        spatial_axes: int = 2,
    ):
        super().__init__()
        check_choice("norm", norm, NORMS)
        self.channels = channel_pairs(student_channels, teacher_channels)
        hidden = hidden or max(s for s, _ in self.channels)
        deepest = len(self.channels) - 1
        self.layers = nn.ModuleList(
            _Fusion(s, hidden, t, index < deepest, norm, spatial_axes) for index, (s, t) in enumerate(self.channels)
        )

    def forward(
        self, features: Sequence[Tensor], sizes: Sequence[Sequence[int]], padding: Padding = EVERYWHERE
    ) -> list[Tensor]:
        """(B, teacher_channels[i], *sizes[i]) for each layer; features (B, student_channels[i], *spatial)."""
        if len(features) != len(self.layers):
            raise ValueError(
                f"student_features: expected {len(self.layers)} features, one per layer, got {len(features)}"
            )
        results: list[Tensor] = []
        deeper = None
        for index in reversed(range(len(features))):
            x, layer = features[index], self.layers[index]
            if x.shape[1] != self.channels[index][0] or x.dim() != len(sizes[index]) + 2:
                raise ValueError(
                    f"student_features[{index}]: expected {self.channels[index][0]} channels and "
                    f"{len(sizes[index]) + 2} axes, got {tuple(x.shape)}"
                )
            with without_autocast(x):
                result, deeper = layer(padding.zeroed(x), deeper, sizes[index], padding)
            results.insert(0, result)
        return results


class _Fusion(nn.Module):
    def __init__(self, student: int, hidden: int, teacher: int, fuses: bool, norm: str, spatial_axes: int):
        super().__init__()
        of_axes = convolution(spatial_axes)
        self.expand = of_axes(hidden, teacher, 3, padding=1, bias=False)
        nn.init.kaiming_uniform_(self.expand.weight, a=1)
        batch = norm == "batch"
        self.reduce = Connector(student, hidden) if batch else _Instance(student, hidden)
        self.norm = ValidBatchNorm(teacher) if batch else _Rectified(teacher)
        # One of two channels: of the layer itself, and of what the deeper ones left.
        self.attention = nn.ModuleList(
            [PositionLinear(hidden, 2), PositionLinear(hidden, 2, bias=False)] if fuses else []
        )

    def forward(
        self, x: Tensor, deeper: Tensor | None, sizes: Sequence[int], padding: Padding
    ) -> tuple[Tensor, Tensor]:
        """What is compared with the teacher, and what goes on to the next layer; padded frames of both are zero."""
        x = padding.zeroed(self.reduce(x, padding))
        if deeper is not None:
            deeper = _nearest(deeper, x.shape[2:])
            own, other = self.attention
            share = torch.sigmoid(own(x) + other(deeper))
            x = x * share[:, :1] + deeper * share[:, 1:]
        x = padding.zeroed(_nearest(x, sizes))
        return self.norm(self.expand(x), padding), x


def _nearest(x: Tensor, sizes: Sequence[int]) -> Tensor:
    return x if tuple(x.shape[2:]) == tuple(sizes) else nn.functional.interpolate(x, tuple(sizes), mode="nearest")


class _Rectified(nn.Module):
    """Instance normalisation and PReLU."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm, self.activation = InstanceNorm(channels), nn.PReLU()

    def forward(self, x: Tensor, padding: Padding) -> Tensor:
        return nn.functional.prelu(self.norm(x, padding), wide(self.activation.weight))


class _Instance(nn.Module):
    """A linear map over channels, instance normalisation, PReLU."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.linear, self.rectified = PositionLinear(inputs, outputs, bias=False), _Rectified(outputs)

    def forward(self, x: Tensor, padding: Padding) -> Tensor:
        return self.rectified(self.linear(x), padding)
