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

import torch
from torch import Tensor, nn

from ..ops import compress, shapes, tap_all
from ..ops.compress import check_mask
from ..ops.tap import check_power
from .checks import (
    check_channels,
    check_choice,
    check_count,
    check_layer_channels,
    check_layer_count,
    check_weights,
)

SCORES = ("learned", "similarity", "uniform")


def abc_loss(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    *,
    scores: Tensor | str | None = None,
    temperature: float = 0.1,
    power: int = 2,
    grid: Sequence[int] | None = None,
    normalize: str = "sample",
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
    mask: Tensor | Sequence[Sequence[bool]] | None = None,
    reduction: str = "mean",
    return_attention: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention-based-compression distillation loss (the definition is at the top of this module).

    student_features   n features (B, C, *spatial), spatial = (T,), (T, F) or (H, W); float32, float64, bfloat16 or
                       float16. The batch size agrees everywhere; channels and spatial sizes need not.
    teacher_features   m such features.
    scores             None or "similarity": <a_i, a_j> / temperature. "uniform": all allowed teacher layers alike.
                       A tensor (B, n, m): these, which then get gradients.
    temperature        of the similarity; other scores do not use it.
    power              r of the attention map mean_c |x|^r, 1 or 2.
    grid               common resolution of the maps, (T,) or (T, F); default: the minimum of all layers, per axis.
    normalize          "sample": each map has norm 1. "frame": each of its frames has; needs a second spatial axis.
    lengths            (B,) integers: valid frames; later ones count nowhere.
    padded_length      the frames to which lengths refer; default: T of the layer with most.
    weights            n numbers w_i; default 1/n.
    mask               (n, m) bool, true where student layer i may use teacher layer j.
    reduction          "mean" over the batch, "sum" over it, or "none" for (B,).
    return_attention   return (loss, attention (B, n, m)).

    Returns a float32 loss (float64 if a feature is), per sample within [0, 2] times the sum of the weights. An empty
    batch gives zero; a silent (all-zero) student sample a finite loss and zero gradient.

    Raises TypeError or ValueError that names the argument, the layer, what was expected and what came.
    """
    _check_pair(student_features, teacher_features)
    n = len(student_features)
    teacher_features = [x.detach() for x in teacher_features]
    features = [*student_features, *teacher_features]
    padded_length = max(x.shape[2] for x in features) if padded_length is None else padded_length
    lengths = shapes.check_lengths(lengths, features[0].shape[0], features[0].device)  # once for all ops
    _, maps, _ = tap_all(features, power=power, means=False, lengths=lengths, padded_length=padded_length)
    return _compressed(
        maps[:n],
        maps[n:],
        scores=scores,
        temperature=temperature,
        grid=grid,
        normalize=normalize,
        lengths=lengths,
        padded_length=padded_length,
        weights=weights,
        mask=mask,
        reduction=reduction,
        return_attention=return_attention,
    )


class ABCLoss(nn.Module):
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
        dim: int = 64,
        *,
        scores: str = "learned",
        detach_queries: bool = False,
        temperature: float = 0.1,
        power: int = 2,
        grid: Sequence[int] | None = None,
        normalize: str = "sample",
        weights: Sequence[float] | None = None,
        mask: Tensor | Sequence[Sequence[bool]] | None = None,
    ):
        super().__init__()
        self.student_channels = check_channels("student_channels", student_channels)
        self.teacher_channels = check_channels("teacher_channels", teacher_channels)
        check_count("dim", dim)
        if not temperature > 0:
            raise ValueError(f"temperature: expected a positive number, got {temperature!r}")
        check_choice("scores", scores, SCORES)
        check_choice("normalize", normalize, ("sample", "frame"))
        if detach_queries and scores != "learned":
            raise ValueError(f"detach_queries: scores={scores!r} has no queries")
        self.scores, self.detach_queries = scores, detach_queries
        self.options = {"temperature": temperature, "grid": grid, "normalize": normalize}
        self.tap_options = {"power": check_power(power), "means": scores == "learned"}
        pairs = (len(student_channels), len(teacher_channels))
        self.register_buffer("weights", check_weights(weights, pairs[0]), persistent=False)
        self.register_buffer("mask", check_mask(mask, pairs), persistent=False)
        if scores == "learned":
            self.queries = nn.ModuleList(nn.Linear(count, dim, bias=False) for count in student_channels)
            self.keys = nn.ModuleList(nn.Linear(count, dim, bias=False) for count in teacher_channels)
            self.layer_embedding = nn.Parameter(torch.randn(pairs[1], dim) / dim**0.5)

    def forward(
        self,
        student_features: Sequence[Tensor],
        teacher_features: Sequence[Tensor],
        *,
        lengths: Tensor | None = None,
        padded_length: int | None = None,
        reduction: str = "mean",
        return_attention: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The loss of features in the order of the channels given at construction; arguments as in `abc_loss`."""
        _check_pair(student_features, teacher_features)
        n = len(student_features)
        features = [*student_features, *(x.detach() for x in teacher_features)]
        padded_length = max(x.shape[2] for x in features) if padded_length is None else padded_length
        lengths = shapes.check_lengths(lengths, features[0].shape[0], features[0].device)  # once for all ops
        _, maps, means = tap_all(features, **self.tap_options, lengths=lengths, padded_length=padded_length)
        student, teacher = (maps[:n], means[:n]), (maps[n:], means[n:])
        loss, attention = self.from_taps(
            student, teacher, lengths=lengths, padded_length=padded_length, reduction=reduction
        )
        return (loss, attention) if return_attention else loss

    def from_taps(
        self,
        student: tuple[list[Tensor], list[Tensor]],
        teacher: tuple[list[Tensor], list[Tensor]],
        *,
        lengths: Tensor | None = None,
        padded_length: int | None = None,
        reduction: str = "mean",
    ) -> tuple[Tensor, Tensor]:
        """Loss and attention of (maps, channel means) that `tap` took with `tap_options` from both networks' layers."""
        (student_maps, student_means), (teacher_maps, teacher_means) = student, teacher
        check_layer_count("student_features", len(student_maps), self.student_channels)
        check_layer_count("teacher_features", len(teacher_maps), self.teacher_channels)
        scores = self._scores(student_means, teacher_means) if self.scores == "learned" else self.scores
        return _compressed(
            student_maps,
            teacher_maps,
            scores=scores,
            **self.options,
            lengths=lengths,
            padded_length=padded_length,
            weights=self.weights,
            mask=self.mask,
            reduction=reduction,
            return_attention=True,
        )

    def _scores(self, student_means: list[Tensor], teacher_means: list[Tensor]) -> Tensor:
        check_layer_channels("student_features", student_means, self.student_channels)
        check_layer_channels("teacher_features", teacher_means, self.teacher_channels)
        # Autocast would round the scores to half precision; they are too few to gain from it.
        with torch.autocast(self.layer_embedding.device.type, enabled=False):
            dtype = self.layer_embedding.dtype
            if self.detach_queries:
                student_means = [mean.detach() for mean in student_means]
            queries = torch.stack([f(mean.to(dtype)) for f, mean in zip(self.queries, student_means, strict=True)], 1)
            keys = torch.stack([f(mean.to(dtype)) for f, mean in zip(self.keys, teacher_means, strict=True)], 1)
            return queries @ (keys + self.layer_embedding).transpose(1, 2) / self.layer_embedding.shape[1] ** 0.5


def _compressed(
    student_maps, teacher_maps, *, scores, temperature, grid, normalize, lengths, padded_length, weights, mask,
    reduction, return_attention,
):  # fmt: skip
    check_choice("normalize", normalize, ("sample", "frame"))
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    batch, n, m = student_maps[0].shape[0], len(student_maps), len(teacher_maps)
    if isinstance(scores, str):
        if scores not in ("similarity", "uniform"):
            expected = f"'similarity' (or None), 'uniform' or a tensor ({batch}, {n}, {m})"
            raise ValueError(f"scores: expected {expected}, got {scores!r}")
        scores = student_maps[0].new_zeros((batch, n, m)) if scores == "uniform" else None
    distances, attention = compress(
        student_maps,
        teacher_maps,
        scores=scores,
        mask=mask,
        grid=grid,
        per_frame=normalize == "frame",
        temperature=temperature,
        lengths=lengths,
        padded_length=padded_length,
    )
    weights = check_weights(weights, n)
    per_sample = distances.mean(1) if weights is None else (distances * weights.to(distances)).sum(1)
    loss = per_sample if reduction == "none" else per_sample.sum()
    if reduction == "mean":
        loss = loss / max(batch, 1)
    return (loss, attention) if return_attention else loss


def _check_pair(student_features, teacher_features) -> None:
    shapes.check_features(student_features, "student_features")
    shapes.check_features(teacher_features, "teacher_features")
    first = student_features[0]
    for name, features in (("student_features", student_features), ("teacher_features", teacher_features)):
        for index, x in enumerate(features):
            for what, expected, got in (
                ("number of axes", first.dim(), x.dim()),
                ("batch size", first.shape[0], x.shape[0]),
                ("device", first.device, x.device),
            ):
                if got != expected:
                    raise ValueError(
                        f"{name}[{index}]: expected {what} {expected} as in student_features[0], got {got}"
                    )
