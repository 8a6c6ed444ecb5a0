"""Hints on activations: which neurons are on (AB), and how far (OFD).

Student and teacher features are what a ReLU would get, not what it gives. Features (B, C, T), (B, C, T, F) or
(B, C, H, W) of equal channels; where sizes differ, both are averaged over the windows of adaptive pooling onto the
smaller size of each axis.

Every function takes, beside its own options,

student_features   a feature or a list of n, float32, float64, bfloat16 or float16; the functional forms want them with
                   the teacher's channels, the modules have connectors.
teacher_features   as many; detached.
reduction          "mean": over positions and channels of a sample, its valid frames, and over samples, so that the loss
                   does not grow with the feature. "batchmean": sum over positions and channels, mean over samples, as
                   published.
lengths            (B,) integers: valid frames; what later ones hold is not read.
padded_length      the frames to which lengths refer; default: T of the feature with most.
weights            n numbers; default 1/n.

returns a scalar in float32 (float64 if a feature is), and raises TypeError or ValueError that names the argument.

Traffic: forward reads S and T once, backward reads both once and writes the gradient of S (op `pointwise`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..common.checks import both_or_neither, listed
from ..common.features import Padding, batch_mean, constant, weighted
from ..common.modules import Configured
from ..common.options import Positive, check_options
from ._connector import Connector
from ._matching import Channels, Features, Learned, channel_pairs, element_mean, matched, sums

Reduction = Literal["mean", "batchmean"]


def ab_loss(
    student_features: Features,
    teacher_features: Features,
    *,
    margin: Positive = 1.0,
    reduction: Reduction = "mean",
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Activation boundaries (Heo et al., AAAI 2019); arguments as in this module.

    L = max(0, margin - s)^2 where the teacher's neuron is on (t > 0), max(0, s + margin)^2 where it is off.

    torchdistill's AltActTransferLoss is reduction="batchmean". RepDistiller's ABLoss is that with weights[i] =
    2^(i - n + 1) 3 / 1000, i = 0..n-1, behind connectors (`ABLoss`).
    """
    check_options(ab_loss, margin=margin, reduction=reduction)
    found, padding = matched(student_features, teacher_features, lengths, padded_length)
    measured = [(sums(s, t, padding, kind="boundary", parameter=margin), t) for s, t in found]
    return _total(measured, padding, reduction, weights)


def ofd_loss(
    student_features: Features,
    teacher_features: Features,
    margins: Tensor | Sequence[Tensor],
    *,
    reduction: Reduction = "mean",
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Overhaul of feature distillation (Heo et al., ICCV 2019); arguments as in this module.

    L = (s - t')^2 with t' = max(t, margin), where t > 0 or s > t'; elsewhere both are off, and L is zero.

    margins   (C,) or a list of n, negative; `margins(batch_norm)` has those of the teacher's layer.

    mdistiller's OFD is reduction="batchmean" with weights[i] = 2^-(n - i - 1), i = 0..n-1, times 1e-3, after connectors
    (`OFDLoss`).
    """
    check_options(ofd_loss, reduction=reduction)
    found, padding = matched(student_features, teacher_features, lengths, padded_length)
    given = [constant(x) if isinstance(x, Tensor) else x for x in listed("margins", margins)]
    if len(given) != len(found):
        raise ValueError(f"margins: expected {len(found)} tensors, one per student feature, got {len(given)}")
    for index, (m, (s, _)) in enumerate(zip(given, found, strict=True)):
        if not isinstance(m, Tensor) or m.shape != s.shape[1:2]:
            got = tuple(m.shape) if isinstance(m, Tensor) else repr(m)
            raise ValueError(f"margins[{index}]: expected a tensor of shape {(s.shape[1],)}, got {got}")
    measured = [(sums(s, t, padding, kind="margin", per_channel=m), t) for (s, t), m in zip(found, given, strict=True)]
    return _total(measured, padding, reduction, weights)


def _total(measured: list[tuple[Tensor, Tensor]], padding: Padding, reduction: str, weights=None) -> Tensor:
    """The loss of [(sums over the positions of each channel, teacher's feature), ...]."""
    losses = [
        batch_mean(element_mean(of_channels, t, padding) if reduction == "mean" else of_channels.sum(1))
        for of_channels, t in measured
    ]
    return weighted(losses, weights, measured)


@torch.no_grad()
def margins(batch_norm: nn.Module) -> Tensor:
    """Margins (C,) for OFD, from the batch normalisation that makes the teacher's feature.

    The mean of the negative part of N(beta, gamma^2), which is what the normalisation gives: m = E[x | x < 0] =
    beta - |gamma| phi(beta / |gamma|) / Phi(-beta / |gamma|), phi and Phi of the standard normal distribution;
    -3 |gamma| where a negative value is rarer than 1e-3, and no more than 0. Computed in float64, returned in the dtype
    of the weight.
    """
    weight, bias = (getattr(batch_norm, name, None) for name in ("weight", "bias"))
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor):
        raise TypeError(f"batch_norm: expected a batch normalisation with weight and bias, got {batch_norm!r}")
    mean, deviation = bias.double(), weight.double().abs()
    below = -mean / deviation.clamp_min(1e-300)  # 0 in standard deviations
    share = torch.special.ndtr(below)
    density = torch.exp(-below.square() / 2) / (2 * torch.pi) ** 0.5
    expected = torch.where(share > 1e-3, mean - deviation * density / share.clamp_min(1e-3), -3 * deviation)
    return expected.clamp_max(0).to(weight.dtype)


class ABLoss(Configured, function=ab_loss):
    """ab_loss with its options chosen once; with channels, behind a learned connector per layer.

    student_channels, teacher_channels   C, lists of n for n layers; None: no connectors, channels agree. A connector is
                                         a linear map over channels and a batch normalisation of the valid frames.
    options                              as in ab_loss.
    """

    def __init__(self, student_channels: Channels | None = None, teacher_channels: Channels | None = None, **options):
        super().__init__(**options)
        channels: tuple[Channels, Channels] | None = both_or_neither("channels", student_channels, teacher_channels)
        self.connected = None if channels is None else _ConnectedAB(*channels, options)

    def forward(self, student_features, teacher_features, *, lengths=None, padded_length=None):
        """The loss of these features; arguments as in ab_loss."""
        form = super().forward if self.connected is None else self.connected
        return form(student_features, teacher_features, lengths=lengths, padded_length=padded_length)


class _ConnectedAB(Learned):
    def __init__(self, student_channels: Channels, teacher_channels: Channels, options: dict):
        options = {"margin": 1.0, "reduction": "mean"} | options
        channels = channel_pairs(student_channels, teacher_channels)
        super().__init__([Connector(*pair) for pair in channels], channels, options)

    def measured(self, layer, s, t, padding):
        return layer.sums(s, t, padding, kind="boundary", parameter=self.options["margin"]), t

    def loss(self, measured, padding):
        return _total(measured, padding, self.options["reduction"], self.options.get("weights"))


class OFDLoss(Learned):
    """ofd_loss behind learned connectors: a linear map over channels and a batch normalisation of the valid frames.

    student_channels, teacher_channels   C, lists of n for n layers.
    margins                              (C,) of the teacher's layers, a list for lists: `margins(batch_norm)`. They are
                                         buffers. None: -3, to be loaded with a state dict or set later.
    reduction, weights                   as in ofd_loss.
    """

    def __init__(
        self,
        student_channels: Channels,
        teacher_channels: Channels,
        margins: Tensor | Sequence[Tensor] | None = None,
        *,
        reduction: Reduction = "mean",
        weights: Sequence[float] | Tensor | None = None,
    ):
        check_options(ofd_loss, reduction=reduction)
        channels = channel_pairs(student_channels, teacher_channels)
        if margins is None:
            margins = [torch.full((c,), -3.0) for _, c in channels]
        margins = [margins] if isinstance(margins, Tensor) else list(margins)
        if [tuple(m.shape) for m in margins] != [(c,) for _, c in channels]:
            raise ValueError(
                f"margins: expected shapes {[(c,) for _, c in channels]}, got {[tuple(m.shape) for m in margins]}"
            )
        super().__init__(
            [Connector(*pair) for pair in channels], channels, {"reduction": reduction, "weights": weights}
        )
        for layer, m in zip(self.layers, margins, strict=True):
            layer.register_buffer("margins", m.detach().clone())

    def measured(self, layer, s, t, padding):
        return layer.sums(s, t, padding, kind="margin", per_channel=layer.margins), t

    def loss(self, measured, padding):
        return _total(measured, padding, **self.options)
