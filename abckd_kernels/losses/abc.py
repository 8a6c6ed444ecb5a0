"""ABC-KD: attention-based-compression knowledge distillation.

Each student layer i learns the compression c_i of all teacher layers: the mean of their normalised attention maps
a_j, weighted by an attention alpha_i over the teacher layers,

    L = sum_i w_i mean_b d_i,   d_i = ||a_i - c_i||^2,   c_i = sum_j alpha_ij a_j,   alpha_i = softmax_j s_ij

(`ops.tap` defines the maps, `ops.compress` all that follows). Gradients reach the student and the learned parameters,
never the teacher.

Source: our reading of the abstract of ABC-KD, arXiv 2305.16665; the abstract is all that we have of the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

import torch
from torch import Tensor, nn

from ..ops import compress
from ..ops.compress import check_mask
from ..ops.shapes import describe
from ..ops.tap import check_power
from .common.arithmetic import wide
from .common.checks import check_channels, check_layer_channels, check_layer_count, check_weights
from .common.features import Padding, checked, without_autocast
from .common.modules import hold_weights
from .common.normalisation import Linear
from .common.options import Count, Positive, check_options
from .common.taps import Attending, TapOptions, Taps, padding_of, tapped

Features = Tensor | Sequence[Tensor]
SCORES = ("similarity", "uniform")


def abc_loss(
    student_features: Features,
    teacher_features: Features,
    *,
    scores: Tensor | str | None = None,
    temperature: Positive = 0.1,
    power: int = 2,
    grid: Sequence[int] | None = None,
    normalize: Literal["sample", "frame"] = "sample",
    reduction: Literal["mean", "sum", "none"] = "mean",
    mask: Tensor | Sequence[Sequence[bool]] | None = None,
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
    return_attention: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention-based-compression distillation loss (the definition is at the top of this module).

    student_features   a feature or n of them, (B, C, *spatial), spatial = (T,), (T, F) or (H, W); float32, float64,
                       bfloat16 or float16. The batch size and the number of axes agree everywhere; channels and spatial
                       sizes need not.
    teacher_features   a feature or m of them; detached.
    scores             None or "similarity": <a_i, a_j> / temperature. "uniform": all allowed teacher layers alike.
                       A tensor (B, n, m): these, which then get gradients.
    temperature        of the similarity; other scores do not use it.
    power              r of the attention map mean_c |x|^r, 1 or 2.
    grid               common resolution of the maps, (T,) or (T, F); default: the minimum of all layers, per axis.
    normalize          "sample": each map has norm 1. "frame": each of its frames has; needs a second spatial axis.
    reduction          "mean" over the batch, "sum" over it, or "none" for (B,).
    mask               (n, m) bool, true where student layer i may use teacher layer j.
    lengths            (B,) integers: valid frames; later ones count nowhere.
    padded_length      the frames to which lengths refer; default: T of the layer with most.
    weights            n numbers w_i; default 1/n.
    return_attention   return (loss, attention (B, n, m)).

    Returns a float32 loss (float64 if a feature is), per sample within [0, 2] times the sum of the weights. An empty
    batch gives zero; a silent (all-zero) student sample a finite loss and zero gradient.

    Raises TypeError or ValueError that names the argument, the layer, what was expected and what came.
    """
    options = _Options(temperature=temperature, grid=grid, normalize=normalize, reduction=reduction)
    check_options(abc_loss, **options)
    students, teachers, padding = checked(student_features, teacher_features, lengths, padded_length, axes=True)
    student, teacher = tapped(students, teachers, padding, power=power, means=False)
    loss, attention = _compressed(student.maps, teacher.maps, scores, mask, padding, weights, **options)
    return (loss, attention) if return_attention else loss


class ABCLoss(Attending):
    """`abc_loss` with learned scores s_ij = (W_i^Q mu(S_i)) . (W_j^K mu(T_j) + e_j) / sqrt(dim), mu = channel mean.

    student_channels   C of the n student layers.
    teacher_channels   C of the m teacher layers.
    dim                size of queries and keys.
    scores             "learned"; or "similarity" or "uniform", the parameter-free forms, with nothing to learn.
    detach_queries     learned scores are constants for the student: it can't lower the loss by the teacher layers that
                       it asks for, only by its maps. Queries, keys and embedding learn as before.
    others             as in abc_loss.

    The state dict depends on channels and dim only, not on batch or map size: queries, keys (nn.Linear without bias,
    one per layer) and layer_embedding (m, dim). `tap_options` tells `Distiller` what to take from each feature.

    Raises ValueError that names the argument.
    """

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        dim: Count = 64,
        *,
        scores: Literal["learned", "similarity", "uniform"] = "learned",
        detach_queries: bool = False,
        temperature: Positive = 0.1,
        power: int = 2,
        grid: Sequence[int] | None = None,
        normalize: Literal["sample", "frame"] = "sample",
        reduction: Literal["mean", "sum", "none"] = "mean",
        mask: Tensor | Sequence[Sequence[bool]] | None = None,
        weights: Sequence[float] | Tensor | None = None,
    ):
        super().__init__()
        self.student_channels = check_channels("student_channels", student_channels)
        self.teacher_channels = check_channels("teacher_channels", teacher_channels)
        self.options = _Options(temperature=temperature, grid=grid, normalize=normalize, reduction=reduction)
        check_options(ABCLoss.__init__, dim=dim, scores=scores, **self.options)
        if detach_queries and scores != "learned":
            raise ValueError(f"detach_queries: scores={scores!r} has no queries")
        self.scores, self.detach_queries = scores, detach_queries
        self.tap_options = TapOptions(power=check_power(power), means=scores == "learned")
        pairs = (len(student_channels), len(teacher_channels))
        hold_weights(self, weights, pairs[0])
        self.register_buffer("mask", check_mask(mask, pairs), persistent=False)
        if scores == "learned":
            self.queries = nn.ModuleList(Linear(count, dim, bias=False) for count in student_channels)
            self.keys = nn.ModuleList(Linear(count, dim, bias=False) for count in teacher_channels)
            self.layer_embedding = nn.Parameter(torch.randn(pairs[1], dim) / dim**0.5)

    def from_taps(
        self, student: Taps, teacher: Taps, *, lengths: Tensor | None = None, padded_length: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Loss and attention of (maps, channel means) that `tap` took with `tap_options` from both networks' layers."""
        (student_maps, student_means), (teacher_maps, teacher_means) = student, teacher
        check_layer_count("student_features", len(student_maps), self.student_channels)
        check_layer_count("teacher_features", len(teacher_maps), self.teacher_channels)
        scores = self._scores(student_means, teacher_means) if self.scores == "learned" else self.scores
        padding = padding_of([student, teacher], lengths, padded_length)
        return _compressed(student_maps, teacher_maps, scores, self.mask, padding, self.weights, **self.options)

    def _scores(self, student_means: Sequence[Tensor], teacher_means: Sequence[Tensor]) -> Tensor:
        check_layer_channels("student_features", student_means, self.student_channels)
        check_layer_channels("teacher_features", teacher_means, self.teacher_channels)
        # Autocast would round the scores to half precision; they are too few to gain from it.
        with without_autocast(self.layer_embedding):
            if self.detach_queries:
                student_means = [mean.detach() for mean in student_means]
            queries = torch.stack([f(mean) for f, mean in zip(self.queries, student_means, strict=True)], 1)
            keys = torch.stack([f(mean) for f, mean in zip(self.keys, teacher_means, strict=True)], 1)
            return queries @ (keys + wide(self.layer_embedding)).transpose(1, 2) / self.layer_embedding.shape[1] ** 0.5


class _Options(TypedDict):
    """What the function and its module are told alike of what `_compressed` does."""

    temperature: float
    grid: Sequence[int] | None
    normalize: str
    reduction: str


def _compressed(
    student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], scores: Tensor | str | None, mask,
    padding: Padding, weights, *, temperature: float, grid: Sequence[int] | None, normalize: str, reduction: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Loss and attention of the maps of both networks."""
    batch, n, m = student_maps[0].shape[0], len(student_maps), len(teacher_maps)
    if isinstance(scores, str):
        if scores not in SCORES:
            expected = f"'similarity' (or None), 'uniform' or a tensor ({batch}, {n}, {m})"
            raise ValueError(f"scores: expected {expected}, got {describe(scores)}")
        scores = student_maps[0].new_zeros((batch, n, m)) if scores == "uniform" else None
    distances, attention = compress(
        student_maps, teacher_maps, scores=scores, mask=mask, grid=grid, per_frame=normalize == "frame",
        temperature=temperature, **padding._asdict(),
    )  # fmt: skip
    weights = check_weights(weights, n)
    if weights is None:
        per_sample = distances.mean(1)
    elif isinstance(weights, Tensor):
        per_sample = (distances * weights.to(distances)).sum(1)
    else:
        per_sample = sum(w * d for w, d in zip(weights, distances.unbind(1), strict=True))
    if reduction == "none":
        return per_sample, attention
    return per_sample.sum() / (max(batch, 1) if reduction == "mean" else 1), attention
