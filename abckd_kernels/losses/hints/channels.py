"""Hints on channels: where each one looks (CWD), and how it goes up and down (PKD), whatever its size.

Features (B, C, T), (B, C, T, F) or (B, C, H, W) of equal channels; where sizes differ, both are averaged over the
windows of adaptive pooling onto the smaller size of each axis.

Every function takes, beside its own options,

student_features   a feature or a list of n, float32, float64, bfloat16 or float16, with the teacher's channels.
teacher_features   as many; detached.
lengths            (B,) integers: valid frames; what later ones hold is not read.
padded_length      the frames to which lengths refer; default: T of the feature with most.
weights            n numbers; default 1/n.

returns a scalar in float32 (float64 if a feature is), and raises TypeError or ValueError that names the argument.

Traffic: forward reads S and T once, backward reads both once and writes the gradient of S. Padded frames cost a copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...ops import shapes
from ...ops.correlation import compare
from ...ops.divergence import divergence
from ...ops.dots import dots
from ..common.arithmetic import small
from ..common.features import Padding, each_pair, gather
from ..common.modules import module
from ..common.options import Convention, Positive, check_options
from ._matching import Features, on_one_grid

CONSTANT = 1e-12  # of a channel's mean square is what its variance has if it is constant to the digits of float32
SIMILAR = ("axes", "channels")


def cwd_loss(
    student_features: Features,
    teacher_features: Features,
    *,
    temperature: Positive = 1.0,
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Channel-wise distillation (Shu et al., ICCV 2021, equation 4); arguments as in this module.

    L = temperature^2 mean_c KL(p_c || q_c), p_c and q_c the softmax of channel c of teacher and student over positions,
    mean over samples. Of logits (B, K, H, W) it compares the maps of classes; a constant added to a channel changes
    nothing.

    temperature   divides the features; larger ones look at more positions.

    mmrazor's ChannelWiseDivergence is this, with its own default of tau = 1.
    """
    check_options(cwd_loss, temperature=temperature)

    def term(s, t, padding):
        s, t = (padding.filled(x, -torch.inf) for x in on_one_grid(s, t, padding, zeroed=False))
        if shapes.is_channels_last(s) and shapes.is_channels_last(t):  # positions are planes, read as they lie
            rows, dim = [x.movedim(1, -1).flatten(1, -2) for x in (s, t)], 1
        else:
            rows, dim = [x.flatten(2) for x in (s, t)], 2
        return temperature**2 * divergence(*rows, temperature=temperature, dim=dim).mean(1)

    return each_pair(
        term, student_features, teacher_features, lengths, padded_length, weights, zeroed=False, equal=SIMILAR
    )


def pkd_loss(
    student_features: Features,
    teacher_features: Features,
    *,
    convention: Convention = "paper",
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
    group=None,
) -> Tensor:
    """Pearson correlation of features (PKD: Cao et al., NeurIPS 2022, equation 2); arguments as in this module.

    L = mean_c (1 - rho_c), rho_c the correlation of channel c of student and teacher over all positions of the batch;
    within [0, 2]. It is half the squared error of features normalised per channel, and neither sizes nor offsets of
    channels matter.

    convention   "paper": as above. "published": times (N - 1) / N for N positions of the batch, as mmrazor's PKDLoss,
                 whose standard deviation divides by N - 1 (and has 1e-6 added).
    group        a process group: the batch is that of all its processes.

    What is constant has no correlation: its rho is 1 if both are, else 0, with no gradient.
    """
    check_options(pkd_loss, convention=convention)

    def term(s, t, padding):
        s, t = on_one_grid(s, t, padding, zeroed=True)
        count = torch.stack([_positions(s, padding)])
        # Sums of the batch, and the positions that they are over.
        sums, count = (gather(x[None], group).sum(0) for x in (dots(s, t).sum(0), count))
        loss = _distances(sums, count.clamp_min(1)).mean()
        return loss * (1 - 1 / count.clamp_min(1)).squeeze(0) if convention == "published" else loss

    return each_pair(term, student_features, teacher_features, lengths, padded_length, weights, equal=SIMILAR)


def _positions(x: Tensor, padding: Padding) -> Tensor:
    """Valid positions of the batch, 0-dim."""
    mask = padding.position_mask(x)
    if mask is None:
        return shapes.scalar(x.shape[0] * x.shape[2:].numel(), x.device)
    return small(mask.sum())


def _distances(sums: Tensor, count: Tensor) -> Tensor:
    """1 - rho of each channel, (C,), from its `dots` (C, 7) summed over samples, without a difference of large ones."""
    xx, yy, _, _, ee, x, e = sums.unbind(-1)
    y = x + e
    variances = [(square - total.square() / count).clamp_min(0) for square, total in ((xx, x), (yy, y), (ee, e))]
    of_x, of_y, of_difference = variances
    constant = of_x <= CONSTANT * xx, of_y <= CONSTANT * yy
    return compare(of_x, of_y, of_difference, constant)[0]


CWDLoss = module(cwd_loss, "CWDLoss")
PKDLoss = module(pkd_loss, "PKDLoss")
