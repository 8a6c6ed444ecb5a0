"""Losses on self-similarity for speech: between the frames of an utterance, between the utterances at each frame, and
the Gram matrices inside one activation.

Features (B, C, T) or (B, C, T, F); channels and bands may differ freely, frames are averaged over the windows of
adaptive pooling onto the smaller number. Sources: the pair of similarities of I2RF-TFCKD ('time' and 'freq' in its
code), the abstract of arXiv 2309.08144 (intra-activation Gram matrices) and our reading where the abstract is silent.

Every function takes, beside its own options,

student_features   a feature or a list of n, float32, float64, bfloat16 or float16.
teacher_features   as many; detached.
lengths            (B,) integers: valid frames; later ones count nowhere.
padded_length      the frames to which lengths refer; default: T of the feature with most.
weights            n numbers; default 1/n.

returns a scalar in float32 (float64 if a feature is), and raises TypeError or ValueError that names the argument.

Traffic: forward reads S and T once, backward reads S once more and writes its gradient (the op `gram`); resizing and
F x F matrices cost copies; T x T matrices are T / (C F) of a feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from ..common.arithmetic import unit
from ..common.checks import listed
from ..common.features import (
    Padding,
    batch_mean,
    each_pair,
    gather,
    pairs,
    resized,
    smaller,
    weighted,
)
from ..common.modules import module
from ..common.options import NotNegative, check_options
from ._gram import cosines, gram, row_divergence

Features = Tensor | Sequence[Tensor]
Divergence = Literal["jeffreys", "kl", "squared"]


def _frames_agree(s: Tensor, t: Tensor, padding: Padding) -> tuple[Tensor, Tensor]:
    frames = min(s.shape[2], t.shape[2])
    s, t = (x if x.shape[2] == frames else resized(x, (frames, *x.shape[3:]), padding) for x in (s, t))
    return s, t


def _row_weights(given, index: int, grams: Tensor) -> Tensor | float:
    """The factors given for the rows of the matrices (G, R, R) of a pair."""
    if given is None:
        return 1.0
    shape = tuple(grams.shape[:2])
    if not isinstance(given, Sequence) or index >= len(given):
        raise ValueError(
            f"row_weights: expected a list with one tensor per pair of features, got {type(given).__name__}"
        )
    if tuple(given[index].shape) != shape:
        raise ValueError(f"row_weights[{index}]: expected shape {shape}, got {tuple(given[index].shape)}")
    return given[index]


def _row_divergences(grams: list[Tensor], mask: Tensor | None, divergence: str, eps: float, norm_eps: float) -> Tensor:
    """(G, R): divergence of the cosines of row r to the valid rows of its group, teacher from student."""
    student, teacher = ((cosines(g, norm_eps) + 1) / 2 for g in grams)
    return row_divergence(student, teacher, divergence, eps, None if mask is None else mask[:, None, :])


def _mean_of_rows(each: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of (G, R) over the valid rows of each group, (G,)."""
    return each.mean(1) if mask is None else each.masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp_min(1)


def time_similarity_loss(
    student_features: Features,
    teacher_features: Features,
    *,
    divergence: Divergence = "jeffreys",
    eps: NotNegative = 1e-7,
    norm_eps: NotNegative = 0.0,
    row_weights: Sequence[Tensor] | None = None,
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """How alike the frames of one utterance are (time calibration of I2RF-TFCKD); arguments as in this module.

    Per sample K_tu = (cos of frames t and u + 1) / 2 over channels and bands, rows scaled to sum 1;
    L = mean over samples of the mean over valid rows of the divergence between teacher and student.

    divergence    of two rows p (student), q (teacher): "jeffreys" sum (q - p)(log q - log p), "kl" of q to p,
                  "squared" sum (q - p)^2.
    eps           inside logarithms; published code has none there.
    norm_eps      added to norms; 1e-6 in published code.
    row_weights   for each pair (B, T), T the smaller number of frames: factors of the rows, such as an attention over
                  teacher layers; they get gradients. Default 1.

    Silent frames have cosine zero to every frame and no gradient.
    """
    check_options(time_similarity_loss, divergence=divergence, eps=eps, norm_eps=norm_eps)
    losses = []
    found, padding = pairs(student_features, teacher_features, lengths, padded_length)
    for index, (s, t) in enumerate(found):
        grams = [gram(x, "frames") for x in _frames_agree(s, t, padding)]
        mask = padding.mask(s, grams[0].shape[1])
        each = _row_divergences(grams, mask, divergence, eps, norm_eps) * _row_weights(row_weights, index, grams[0])
        losses.append(batch_mean(_mean_of_rows(each, mask)))
    return weighted(losses, weights, found)


def frame_similarity_loss(
    student_features: Features,
    teacher_features: Features,
    *,
    divergence: Divergence = "jeffreys",
    eps: NotNegative = 1e-7,
    norm_eps: NotNegative = 0.0,
    row_weights: Sequence[Tensor] | None = None,
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
    group=None,
) -> Tensor:
    """How alike the samples of a batch are, frame by frame ('freq' in I2RF-TFCKD); arguments as in this module.

    Per frame K_bc = (cos of samples b and c + 1) / 2 over channels and bands, rows over the samples that are valid in
    that frame scaled to sum 1; L = mean over all valid (frame, sample) of the divergence between teacher and student.

    row_weights   for each pair (T, B), B that of the whole group.
    group         a torch.distributed process group over which the batch is gathered; all its processes need equal
                  shapes, and padded_length.
    others        as in time_similarity_loss.

    Published code divides by B where ours divides by T, so that its loss grows with the number of frames.
    """
    check_options(frame_similarity_loss, divergence=divergence, eps=eps, norm_eps=norm_eps)
    losses = []
    found, padding = pairs(student_features, teacher_features, lengths, padded_length)
    for index, (s, t) in enumerate(found):
        grams = [gram(gather(x, group), "samples_per_frame") for x in _frames_agree(s, t, padding)]
        mask = padding.mask(s, len(grams[0]))
        if mask is not None:
            mask = gather(mask, group).T
        each = _row_divergences(grams, mask, divergence, eps, norm_eps) * _row_weights(row_weights, index, grams[0])
        if mask is None:
            total = each.sum() / max(each.numel(), 1)
        else:
            total = each.masked_fill(~mask, 0).sum() / mask.sum().clamp_min(1)
        losses.append(total)
    return weighted(losses, weights, found)


def gram_loss(
    student_features: Features,
    teacher_features: Features,
    *,
    axis: Literal["frames", "bands", "channels"] = "frames",
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Intra-activation Gram matrices (similarity preserving inside a sample; arXiv 2309.08144, our reading of its
    abstract); arguments as in this module.

    Per sample G = X Xᵀ, a row of X for each index of `axis`, R the rows of G scaled to norm 1; L = mean over samples of
    the mean over valid rows of ||R_s - R_t||^2, within [0, 4].

    axis   "frames": T x T. "bands": F x F. Both are pooled onto the smaller size of that axis. "channels": C x C, which
           must agree, and is ickd_loss. What is not the axis may differ freely.

    Silent rows are zero and have no gradient.
    """
    check_options(gram_loss, axis=axis)
    for name, given in (("student_features", student_features), ("teacher_features", teacher_features)):
        for index, x in enumerate(listed(name, given)):
            if axis == "bands" and isinstance(x, Tensor) and x.dim() == 3:
                raise ValueError(f"{name}[{index}]: expected bands (B, C, T, F), got {tuple(x.shape)}")

    def term(s, t, padding):
        mask = None
        if axis == "channels":
            grams = [gram(x, "channels") for x in (s, t)]
        elif axis == "frames":
            grams = [gram(x, "frames") for x in _frames_agree(s, t, padding)]
            mask = padding.mask(s, grams[0].shape[1])
        else:
            bands = smaller(s, t)[1]
            grams = [gram(resized(x, (x.shape[2], bands), padding).movedim(3, 1), "channels") for x in (s, t)]
        normalised = [unit(g) for g in grams]
        return _mean_of_rows((normalised[0] - normalised[1]).square().sum(2), mask)

    equal = ("channels",) if axis == "channels" else ()
    return each_pair(term, student_features, teacher_features, lengths, padded_length, weights, equal=equal)


TimeSimilarityLoss = module(time_similarity_loss, "TimeSimilarityLoss")
FrameSimilarityLoss = module(frame_similarity_loss, "FrameSimilarityLoss")
GramLoss = module(gram_loss, "GramLoss")
