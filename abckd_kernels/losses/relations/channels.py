"""Losses on relations between channels, sample by sample: NST, FSP, ICKD, affinity.

Features (B, C, T), (B, C, T, F) or (B, C, H, W). All come from C x C' products by bmm and never form what the
definitions name: B x C x C' x N (NST, FSP) or B x C x N x N (affinity), N positions. Where spatial sizes must agree,
both features are averaged over the windows of adaptive pooling onto the smaller size of each axis.

Every function takes, beside its own options,

student_features   a feature or a list of n, float32, float64, bfloat16 or float16.
teacher_features   as many; detached.
lengths            (B,) integers: valid frames; later ones count nowhere.
padded_length      the frames to which lengths refer; default: T of the feature with most.
weights            n numbers; default 1/n.

returns a scalar in float32 (float64 if a feature is), and raises TypeError or ValueError that names the argument.

Traffic: ICKD and affinity between channels read S and T once forward, S (affinity: and T) once more backward, and
write the gradient once (the ops `gram` and `dots`); NST reads S and T twice; affinity between positions makes
normalised copies of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ...ops.dots import dots
from ...ops.gram import gram
from ..common.arithmetic import SILENT, inverse, root, unit, wide
from ..common.checks import both_or_neither
from ..common.features import (
    Padding,
    batch_mean,
    check_equal,
    each_pair,
    on_one_grid,
    pairs,
    resized,
    smaller,
    weighted,
    without_autocast,
)
from ..common.modules import Configured, module
from ..common.normalisation import ValidBatchNorm, convolution
from ..common.options import Convention, Positive, check_options
from ..common.taps import cells
from ._gram import cross_cosines, products

Features = Tensor | Sequence[Tensor]


def nst_loss(
    student_features: Features,
    teacher_features: Features,
    *,
    kernel: Literal["poly", "linear", "gaussian"] = "poly",
    bandwidth: Positive | None = None,
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Neuron selectivity transfer (Huang and Wang, 2017, arXiv 1707.01219): squared maximum mean discrepancy between
    the channels of both networks; arguments as in this module.

    u = a channel's map scaled to norm 1, L = mean over samples of mean k(u_t, u_t) + mean k(u_s, u_s) - 2 mean
    k(u_s, u_t) over pairs of channels; channels may differ in number. At least 0 (up to rounding).

    kernel      "poly": (x.y)^2, the paper's best. "linear": x.y. "gaussian": exp(-||x - y||^2 / (2 sigma^2)).
    bandwidth   sigma^2 of "gaussian"; default: the mean of ||x_s - x_t||^2 in that sample, taken as a constant.

    Published code is the polynomial one; it resizes onto squares only.
    """
    check_options(nst_loss, kernel=kernel, bandwidth=bandwidth)

    def kernels(cosine):
        """Of the channels of both, {"s", "t", "st"}."""
        if kernel == "poly":
            return {name: c.square() for name, c in cosine.items()}
        if kernel == "linear":
            return cosine
        norms = {name: cosine[name].diagonal(dim1=1, dim2=2) for name in ("s", "t")}
        apart = {name: norms[name[0]][:, :, None] + norms[name[-1]][:, None, :] - 2 * c for name, c in cosine.items()}
        if bandwidth is None:
            scale = inverse(2 * apart["st"].detach().mean((1, 2), keepdim=True))
        else:
            scale = 1 / (2 * bandwidth)
        return {name: torch.exp(-d * scale) for name, d in apart.items()}

    def term(s, t, padding):
        # Widened once: two gradients, rounded to half precision each, would cancel to noise.
        x, y = (wide(feature) for feature in on_one_grid(s, t, padding, zeroed=True))
        k = kernels(dict(zip(("s", "t", "st"), cross_cosines(x, y), strict=True)))
        mean = {name: value.mean((1, 2)) for name, value in k.items()}
        return mean["t"] + mean["s"] - 2 * mean["st"]

    return each_pair(term, student_features, teacher_features, lengths, padded_length, weights, equal=("axes",))


def fsp_loss(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    *,
    pooling: Literal["avg", "max"] = "avg",
    distance: Literal["sum", "mean", "columns"] = "sum",
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Flow of solution procedure (Yim et al., CVPR 2017); arguments as in this module, except that
    the lists hold at least two layers and n counts consecutive pairs (i, i + 1) of them.

    G = X_i X_i+1ᵀ / N per sample, N positions; L = mean over samples of sum (G_s - G_t)^2. Layers i and i + 1 of one
    network meet on the smaller size of each axis; student and teacher need equal channels, not sizes.

    pooling    how two layers meet: "avg", or "max", as in the paper and torchdistill.
    distance   "sum": the paper. "mean": over the entries of G, too, as in RepDistiller. "columns": the sum of the
               norms, not squared, of the columns of G_s - G_t, as in torchdistill.

    RepDistiller and torchdistill add up the pairs of layers: weights=[1] * n.
    """
    check_options(fsp_loss, pooling=pooling, distance=distance)
    found, padding = pairs(student_features, teacher_features, lengths, padded_length)
    if len(found) < 2:
        raise ValueError("student_features: expected at least two layers, whose flow is compared, got 1")
    for index, (s, t) in enumerate(found):
        check_equal(index, "channels", s.shape[1], t.shape[1])
    losses = []
    for (s, t), (s_next, t_next) in zip(found, found[1:], strict=False):
        difference = _flow(s, s_next, pooling, padding) - _flow(t, t_next, pooling, padding)
        if distance == "columns":
            per_sample = root(difference.square().sum(1)).sum(1)
        else:
            per_sample = difference.square().sum((1, 2))
            if distance == "mean":
                per_sample = per_sample / (s.shape[1] * s_next.shape[1])
        losses.append(batch_mean(per_sample))
    return weighted(losses, weights, found)


def _flow(x: Tensor, y: Tensor, pooling: str, padding: Padding) -> Tensor:
    if x.dim() != y.dim():
        raise ValueError(f"student_features: expected layers of {x.dim()} axes throughout, got {y.dim()}")
    sizes = smaller(x, y)
    x, y = (_meet(a, sizes, pooling, padding) for a in (x, y))
    count = padding.positions(x)
    g = products(x.flatten(2), y.flatten(2))
    return g / (count[:, None, None] if isinstance(count, Tensor) else count)


def _meet(x: Tensor, sizes: Sequence[int], pooling: str, padding: Padding) -> Tensor:
    if list(x.shape[2:]) == sizes:
        return x
    return resized(x, sizes, padding) if pooling == "avg" else _largest(x, sizes, padding)


def _largest(x: Tensor, sizes: Sequence[int], padding: Padding) -> Tensor:
    """Adaptive max pooling over valid frames."""
    if tuple(sizes) == tuple(x.shape[2:]):
        return x
    x = padding.filled(x, -torch.inf)
    pool = nn.functional.adaptive_max_pool1d if x.dim() == 3 else nn.functional.adaptive_max_pool2d
    return padding.zeroed(pool(x, list(sizes)))


def ickd_loss(
    student_features: Features,
    teacher_features: Features,
    *,
    convention: Convention = "paper",
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Inter-channel correlation (Liu et al., ICCV 2021); arguments as in this module.

    G = X Xᵀ over the positions of a sample, R its rows scaled to norm 1, L = mean over samples of
    ||R_s - R_t||_F^2 / C; within [0, 4]. Sizes may differ, channels may not (`ICKDLoss` embeds the student's).

    convention   "paper": mean over samples. "published": their sum over B^2, as torchdistill's ChSimLoss.
    """
    check_options(ickd_loss, convention=convention)

    def term(s, t, _):
        rows = [unit(gram(x, "channels")) for x in (s, t)]
        per_sample = (rows[0] - rows[1]).square().sum((1, 2)) / s.shape[1]
        return per_sample / max(len(s), 1) if convention == "published" else per_sample

    return each_pair(term, student_features, teacher_features, lengths, padded_length, weights, equal=("channels",))


def affinity_loss(
    student_features: Features,
    teacher_features: Features,
    *,
    relation: Literal["channel", "position"] = "channel",
    squared: bool = False,
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Affinity between positions (He et al., CVPR 2019, in torchdistill's form); arguments as in this module.

    relation   "channel": u = a channel's map scaled to norm 1, A = u uᵀ (N x N), L = mean over samples of
               sum_c ||A_s - A_t||_F / N: torchdistill's AffinityLoss. Channels must agree.
               "position": u = a position's channels scaled to norm 1, A = their cosines (N x N), L = mean over samples
               of ||A_s - A_t||_F / N: our reading of the paper. Channels may differ.
    squared    ||.||_F^2 in place of ||.||_F (and N^2 in place of N).

    No N x N matrix is formed: for a channel ||A_s - A_t||_F^2 = 2 (1 - cos^2) from the op `dots`, of nearly equal maps
    without a difference of large numbers; for positions the Gram matrices of channels do. Equal maps and silent ones
    have a finite gradient (published: NaN).
    """
    check_options(affinity_loss, relation=relation, squared=squared)

    def term(s, t, padding):
        x, y = on_one_grid(s, t, padding, zeroed=True)
        if relation == "channel":
            error = _affinity(dots(x, y))
        else:
            x, y = (unit(wide(a).flatten(2), 1) for a in (x, y))
            # One kind of product for all three, so that equal maps give zero.
            squares = [products(a, b).square().sum((1, 2)) for a, b in ((x, x), (y, y), (x, y))]
            error = (squares[0] + squares[1] - 2 * squares[2])[:, None]
        count = cells(smaller(s, t), padding)
        return error.sum(1) / count**2 if squared else root(error).sum(1) / count

    equal = ("axes", "channels") if relation == "channel" else ("axes",)
    return each_pair(term, student_features, teacher_features, lengths, padded_length, weights, equal=equal)


def _affinity(products: Tensor) -> Tensor:
    """||A_x - A_y||_F^2 = 2 (1 - cos^2) of each channel from its `dots`; 1 if one of both is silent, 0 if both are."""
    xx, yy, xy, xe, ee = products[..., :5].unbind(-1)
    near = ee <= xx / 4
    # The same number, of which the first keeps its digits where y is near x, the second where their sizes differ.
    area = torch.where(near, xx * ee - xe.square(), xx * yy - xy.square()).clamp_min(0)
    silent_x, silent_y = (root(norm.detach()) <= SILENT for norm in (xx, yy))
    either = silent_x | silent_y
    return torch.where(either, (silent_x ^ silent_y).to(area.dtype), 2 * area / torch.where(either, 1, xx * yy))


NSTLoss = module(nst_loss, "NSTLoss")
FSPLoss = module(fsp_loss, "FSPLoss")
AffinityLoss = module(affinity_loss, "AffinityLoss")


class ICKDLoss(Configured, function=ickd_loss):
    """ickd_loss, optionally with a learned embedding of the student's channels into the teacher's.

    student_channels, teacher_channels   C of one pair of layers; None: no embedding, channels agree.
    spatial_axes                         1 for (B, C, T), 2 for (B, C, T, F).
    kernel_size                          of the embedding, a convolution without bias and a batch normalisation, whose
                                         statistics are those of the valid frames.
    options                              as in ickd_loss.
    """

    def __init__(
        self,
        student_channels: int | None = None,
        teacher_channels: int | None = None,
        *,
        spatial_axes: int = 2,
        kernel_size: int = 3,
        **options,
    ):
        super().__init__(**options)
        channels = both_or_neither("channels", student_channels, teacher_channels)
        of_axes = convolution(spatial_axes)
        self.embedding = None
        if channels is not None:
            self.embedding = of_axes(*channels, kernel_size, padding="same", bias=False)
            self.normalisation = ValidBatchNorm(channels[1])

    def forward(self, student_features, teacher_features, *, lengths=None, padded_length=None):
        """The loss of these features; arguments as in ickd_loss."""
        if self.embedding is None:
            return super().forward(student_features, teacher_features, lengths=lengths, padded_length=padded_length)
        found, padding = pairs(student_features, teacher_features, lengths, padded_length)
        if len(found) != 1:
            raise ValueError(f"student_features: expected one feature for one embedding, got {len(found)}")
        (s, t), weight = found[0], self.embedding.weight
        if (s.shape[1], s.dim()) != (weight.shape[1], weight.dim()):
            raise ValueError(
                f"student_features: expected {weight.shape[1]} channels and {weight.dim()} axes, got {tuple(s.shape)}"
            )
        with without_autocast(s):
            weight = wide(weight)
            embedded = self.normalisation(self.embedding._conv_forward(s.to(weight.dtype), weight, None), padding)
            return ickd_loss(embedded, t, **self.options)
