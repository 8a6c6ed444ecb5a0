"""Hints that are a distance at every position: plain squared error, VID, PAD, SRD.

Features (B, C, T), (B, C, T, F) or (B, C, H, W). Student and teacher need equal channels; where their sizes differ,
both are averaged over the windows of adaptive pooling onto the smaller size of each axis.

Every function takes, beside its own options,

student_features   a feature or a list of n, float32, float64, bfloat16 or float16; already projected, where the loss
                   has a learned projection.
teacher_features   as many; detached.
lengths            (B,) integers: valid frames; what later ones hold is not read.
padded_length      the frames to which lengths refer; default: T of the feature with most.
weights            n numbers; default 1/n.

returns a scalar in float32 (float64 if a feature is), and raises TypeError or ValueError that names the argument. Means
run over positions and channels of a sample, its valid frames, and then over samples; without lengths that is the mean
over everything.

Traffic: forward reads S and T once, backward reads both once and writes the gradient of S (op `pointwise`); VID and
PAD as theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...ops.shapes import describe
from ..common.features import Padding, batch_mean, resized, weighted
from ..common.normalisation import BatchNorm, running_statistics, statistics
from ..common.options import Convention, Positive, check_options
from ._connector import Connector, PositionLinear, channel_moments, projected_sums
from ._matching import Channels, Features, Learned, channel_pairs, element_mean, matched, sums


def hint_loss(
    student_features: Features,
    teacher_features: Features,
    *,
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Mean of (s - t)^2 (FitNets: Romero et al., ICLR 2015); arguments as in this module; features may be (B, D)."""
    found, padding = matched(student_features, teacher_features, lengths, padded_length, vectors=True)
    losses = [batch_mean(element_mean(sums(s, t, padding), s, padding)) for s, t in found]
    return weighted(losses, weights, found)


def vid_loss(
    student_features: Features,
    teacher_features: Features,
    scales: Tensor | Sequence[Tensor],
    *,
    eps: Positive = 1e-5,
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Variational information distillation (Ahn et al., CVPR 2019); arguments as in this module.

    L = mean of ((s - t)^2 / v_c + log v_c) / 2 with one variance per channel, v = log(1 + e^scale) + eps. Negative
    where the student explains the teacher better than variance 1 does.

    student_features   the regressed ones; `VIDLoss` has the published regressor.
    scales             (C,), a list of n for n features; it gets gradients, too.
    eps                the least variance.
    """
    check_options(vid_loss, eps=eps)
    found, padding = matched(student_features, teacher_features, lengths, padded_length)
    scales = _one_per_layer("scales", scales, found)
    for index, (scale, (s, _)) in enumerate(zip(scales, found, strict=True)):
        if scale.shape != s.shape[1:2]:
            raise ValueError(f"scales[{index}]: expected shape {(s.shape[1],)}, got {tuple(scale.shape)}")
    return _vid(found, scales, padding, eps, weights)


def _vid(found, scales, padding: Padding, eps: float, weights=None) -> Tensor:
    losses = []
    for (s, t), scale in zip(found, scales, strict=True):
        squared = sums(s, t, padding)
        variance = nn.functional.softplus(scale.to(squared.dtype)) + eps
        error = element_mean(squared / variance, s, padding)
        losses.append(batch_mean(error + variance.log().mean()) / 2)
    return weighted(losses, weights, found)


def pad_loss(
    student_features: Features,
    teacher_features: Features,
    log_variances: Features,
    *,
    eps: Positive = 1e-6,
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Prime-aware adaptive distillation (Zhang et al., ECCV 2020); arguments as in this module; features may be (B, D).

    L = mean of (t - s)^2 / (eps + e^l) + l, with a variance of each element that the student predicts: what the student
    can't learn yet counts less. Negative where it is sure of itself.

    log_variances   l, shaped as the student's features, a list for a list; they get gradients, too. `PADLoss` has a
                    branch that predicts them. Pooled with the features where sizes differ.
    eps             the least variance.

    Traffic: one more feature to read in both directions, and one more gradient to write.
    """
    check_options(pad_loss, eps=eps)
    found, padding = matched(student_features, teacher_features, lengths, padded_length, vectors=True)
    features = [student_features] if isinstance(student_features, Tensor) else student_features
    given, triples = _one_per_layer("log_variances", log_variances, found), []
    for index, (s, t) in enumerate(found):
        x, variance = features[index], given[index]
        if variance.shape != x.shape or variance.device != x.device:
            raise ValueError(
                f"log_variances[{index}]: expected shape {tuple(x.shape)} on {x.device} as student_features[{index}], "
                f"got {tuple(variance.shape)} on {variance.device}"
            )
        variance = variance[:, None] if variance.dim() == 2 else variance
        if variance.shape != s.shape:
            variance = resized(padding.zeroed(variance), s.shape[2:], padding)
        triples.append((s, t, variance))
    return _pad(triples, padding, eps, weights)


def _pad(found, padding: Padding, eps: float, weights=None) -> Tensor:
    losses = []
    for s, t, log_variance in found:
        of_channels = sums(s, t, padding, kind="heteroscedastic", third=log_variance, parameter=eps)
        losses.append(batch_mean(element_mean(of_channels, s, padding)))
    return weighted(losses, weights, [x[:2] for x in found])


def srd_loss(
    student_features: Features,
    teacher_features: Features,
    *,
    power: Positive = 4.0,
    convention: Convention = "paper",
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """The logarithm of a distance, of "Understanding the role of the projector in knowledge distillation" (Miles and
    Mikolajczyk, AAAI 2024); arguments as in this module; features may be (B, D).

    power        p.
    convention   "paper": mean over samples of log(1 + mean |s - t|^p / 1e-8). Where features differ by more than a few
                 hundredths its gradient is that of log mean |s - t|^p; at equality it is zero, as is the loss.
                 "published": log sum |s - t|^p over everything, the batch included. It grows with the size of batch and
                 features, has no lower bound, and couples the samples.

    torchdistill's SRDLoss is convention="published", weights=[2], plus the divergence of the logits. `SRDLoss` has the
    projector and the normalisations in front.
    """
    check_options(srd_loss, power=power, convention=convention)
    found, padding = matched(student_features, teacher_features, lengths, padded_length, vectors=True)
    measured = [(sums(s, t, padding, kind="power", parameter=power), t) for s, t in found]
    return _srd(measured, padding, convention, weights)


SRD_EPS = 1e-8


def _srd(measured: list[tuple[Tensor, Tensor]], padding: Padding, convention: str, weights=None) -> Tensor:
    """The loss of [(sums of |s - t|^p over the positions of each channel, teacher's feature), ...]."""
    losses = []
    for of_channels, t in measured:
        if convention == "paper":
            losses.append(batch_mean(torch.log1p(element_mean(of_channels, t, padding) / SRD_EPS)))
        else:
            total = of_channels.sum()
            losses.append(total.clamp_min(torch.finfo(total.dtype).tiny).log() if len(t) else total)
    return weighted(losses, weights, measured)


def _one_per_layer(name: str, given: Tensor | Sequence[Tensor], found: list) -> list[Tensor]:
    values = [given] if isinstance(given, Tensor) else given
    if not isinstance(values, Sequence | nn.ParameterList) or not all(isinstance(x, Tensor) for x in values):
        raise TypeError(f"{name}: expected a tensor or a list of tensors, got {describe(given)}")
    if len(values) != len(found):
        raise ValueError(f"{name}: expected {len(found)} tensors, one per student feature, got {len(values)}")
    return list(values)


class VIDLoss(Learned):
    """vid_loss with its regressor, three linear maps over channels with ReLU between them, and its variances.

    student_channels, teacher_channels   C, lists of n for n layers.
    hidden                               channels between the maps; default: the teacher's, as published.
    initial_variance                     of every channel.
    eps, weights                         as in vid_loss.

    Traffic: the features between the maps are written, and kept for backward; nothing else is.
    """

    def __init__(
        self,
        student_channels: Channels,
        teacher_channels: Channels,
        *,
        hidden: int | None = None,
        initial_variance: float = 5.0,
        eps: float = 1e-5,
        weights: Sequence[float] | Tensor | None = None,
    ):
        check_options(vid_loss, eps=eps)
        if not initial_variance > eps:
            raise ValueError(f"initial_variance: expected a number above eps = {eps}, got {initial_variance!r}")
        channels = channel_pairs(student_channels, teacher_channels)
        made = [_Regressor(s, hidden or t, t, math.log(math.expm1(initial_variance - eps))) for s, t in channels]
        super().__init__(made, channels, {"eps": eps, "weights": weights})

    def measured(self, layer, s, t, padding):
        return layer(s), t

    def loss(self, found, padding):
        return _vid(found, [layer.scale for layer in self.layers], padding, **self.options)


class _Regressor(nn.Module):
    def __init__(self, student: int, hidden: int, teacher: int, scale: float):
        super().__init__()
        sizes = (student, hidden), (hidden, hidden), (hidden, teacher)
        self.first, self.second, self.third = (PositionLinear(*size, bias=False) for size in sizes)
        self.scale = nn.Parameter(torch.full((teacher,), scale))

    def forward(self, s: Tensor) -> Tensor:
        return self.third(self.second(self.first(s, relu=True), relu=True))


class PADLoss(Learned):
    """pad_loss with a branch that predicts the variances: a linear map over the student's channels and a batch norm.

    student_channels, teacher_channels   C, lists of n for n layers. Where they differ, another linear map projects the
                                         student's features.
    eps, weights                         as in pad_loss.
    """

    def __init__(
        self,
        student_channels: Channels,
        teacher_channels: Channels,
        *,
        eps: float = 1e-6,
        weights: Sequence[float] | Tensor | None = None,
    ):
        check_options(pad_loss, eps=eps)
        channels = channel_pairs(student_channels, teacher_channels)
        super().__init__([_Variance(*pair) for pair in channels], channels, {"eps": eps, "weights": weights})

    def measured(self, layer, s, t, padding):
        return layer.projected(s), t, layer.variance(s, padding)

    def loss(self, found, padding):
        return _pad(found, padding, **self.options)


class _Variance(nn.Module):
    def __init__(self, student: int, teacher: int):
        super().__init__()
        self.variance = Connector(student, teacher)
        self.projection = None if student == teacher else PositionLinear(student, teacher)

    def projected(self, s: Tensor) -> Tensor:
        return s if self.projection is None else self.projection(s)


class SRDLoss(Learned):
    """srd_loss behind a learned linear map of the student's channels; both sides are normalised by batch statistics.

    student_channels, teacher_channels   C, lists of n for n layers.
    eps                                  of both normalisations, which have no parameters of their own.
    power, convention, weights           as in srd_loss.

    Neither side's normalised feature is formed: the student's normalisation is folded into the map, the teacher's too,
    in its units. In evaluation the statistics are the running ones.
    """

    def __init__(
        self,
        student_channels: Channels,
        teacher_channels: Channels,
        *,
        eps: float = 1e-5,
        power: Positive = 4.0,
        convention: Convention = "paper",
        weights: Sequence[float] | Tensor | None = None,
    ):
        check_options(srd_loss, power=power, convention=convention)
        channels = channel_pairs(student_channels, teacher_channels)
        options = {"power": power, "convention": convention, "weights": weights}
        super().__init__([_Normalised(*pair, eps) for pair in channels], channels, options)

    def measured(self, layer, s, t, padding):
        return layer.sums(s, t, padding, self.options["power"]), t

    def loss(self, measured, padding):
        return _srd(measured, padding, self.options["convention"], self.options["weights"])


class _Normalised(nn.Module):
    """Both normalisations in one map: s' with (s' - t) / deviation = (normalised projection of s) - (normalised t)."""

    def __init__(self, student: int, teacher: int, eps: float):
        super().__init__()
        self.student = Connector(student, teacher, eps=eps, affine=False)
        self.teacher = BatchNorm(teacher, eps=eps, affine=False)

    def sums(self, s: Tensor, t: Tensor, padding: Padding, power: float) -> Tensor:
        weight, bias = self.student.folded(s, padding)
        if self.training:
            mean, variance = statistics(self.teacher, *channel_moments(t, padding))
        else:
            mean, variance = running_statistics(self.teacher)
        deviation = (variance + self.teacher.eps).sqrt().to(weight.dtype)
        weight, bias = weight * deviation[:, None], bias * deviation + mean.to(weight.dtype)
        of_channels = projected_sums(s, t, weight, bias, padding, kind="power", parameter=power)
        return of_channels / deviation**power
