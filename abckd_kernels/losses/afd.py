"""Attention-based feature distillation: which student layer learns from which teacher layer is learned.

For n student and m teacher layers, with the maps v_ij = the energy map mean_c s_i^2 pooled to the size of teacher
layer j and scaled to norm 1, and w_j = that of teacher layer j,

    L = sum_j weights[j] mean_b sum_i attention[b, i, j] ||v_ij - w_j||^2,   sum_i attention[b, i, j] = 1

Source: Ji, Heo and Park, Show, attend and distill (AAAI 2021), and its published code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..ops.shapes import describe
from .common.arithmetic import wide
from .common.checks import (
    check_channels,
    check_choice,
    check_count,
    check_layer_channels,
    check_layer_count,
)
from .common.features import batch_mean, checked, weighted, without_autocast
from .common.modules import hold_weights
from .common.normalisation import NormalisedLinear
from .common.taps import Attending, TapOptions, Taps, cells, distances, padding_of, tapped

__all__ = ["AFDLoss", "afd_loss"]

DISTANCES = ("sum", "mean")
Features = Tensor | Sequence[Tensor]


def afd_loss(
    student_features: Features,
    teacher_features: Features,
    *,
    attention: Tensor | None = None,
    distance: str = "sum",
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Attention-based feature distillation with a given attention (the definition is at the top of this module).

    student_features   a feature or a list of n, (B, C, T), (B, C, T, F) or (B, C, H, W); float32, float64, bfloat16 or
                       float16.
    teacher_features   a feature or a list of m; detached. Any channels and sizes; the number of axes agrees everywhere.
    attention          (B, n, m), how much teacher layer j teaches student layer i in each sample; it gets gradients.
                       Default: 1/n.
    distance           "sum": ||v_ij - w_j||^2, within [0, 2]. "mean": that over the number of positions, as published,
                       which leaves gradients that float16 flushes to zero.
    lengths            (B,) integers: valid frames; later ones count nowhere.
    padded_length      the frames to which lengths refer; default: T of the feature with most.
    weights            m numbers, one per teacher layer; default 1/m. Published: [1] * m.

    Returns a scalar in float32 (float64 if a feature is). A silent sample has a zero map: finite loss, zero gradient.

    Traffic: S and T read once forward; backward reads S and writes its gradient once.

    Raises TypeError or ValueError that names the argument.
    """
    check_choice("distance", distance, DISTANCES)
    students, teachers, padding = checked(student_features, teacher_features, lengths, padded_length)
    student, teacher = tapped(students, teachers, padding, means=False)
    return _attended(student.maps, teacher.maps, attention, distance, padding, weights)


def _attended(students, teachers, attention, distance, padding, weights) -> Tensor:
    batch, n, m = students[0].shape[0], len(students), len(teachers)
    for name, maps in (("student_features", students), ("teacher_features", teachers)):
        for index, x in enumerate(maps):
            if x.dim() != students[0].dim():
                axes = f"{students[0].dim() + 1} axes as in student_features[0]"
                raise ValueError(f"{name}[{index}]: expected {axes}, got {x.dim() + 1}")
    if attention is None:
        attention = students[0].new_full((batch, n, m), 1 / n)
    elif not isinstance(attention, Tensor) or attention.shape != (batch, n, m):
        got = tuple(attention.shape) if isinstance(attention, Tensor) else attention
        raise ValueError(f"attention: expected a tensor {(batch, n, m)}, got {describe(got)}")
    losses = []
    for j, teacher in enumerate(teachers):
        grid = teacher.shape[1:]
        per_layer = distances(students, teacher, grid, padding)
        if distance == "mean":
            count = cells(grid, padding)
            per_layer = per_layer / (count[:, None] if isinstance(count, Tensor) else count)
        losses.append(batch_mean((attention[:, :, j].to(per_layer) * per_layer).sum(1)))
    return weighted(losses, weights, (students, teachers))


class AFDLoss(Attending):
    """`afd_loss` with a learned attention over the student's layers, for each teacher layer.

    From the channel means mu of every feature (BN: batch normalisation over the batch):

        k_i = ReLU(BN(W_i mu(S_i)))     K_i = BN(W k_i), one key per teacher layer     q_j = BN(W'_j mu(T_j))
        attention_ij = softmax_i (K_ij . q_j + e_j . e'_i) / sqrt(dim)

    student_channels   C of the n student layers.
    teacher_channels   C of the m teacher layers.
    dim                size of queries and keys.
    others             as in afd_loss.

    The state dict depends on channels and dim only: keys, key_mixer, queries, student_embedding (n, dim) and
    teacher_embedding (m, dim). Layers may have any sizes in any order (the published code mixes up the maps of teacher
    layers of equal size that are not neighbours). The published loss: distance="mean", weights=[1] * m.

    `tap_options` tells `Distiller` what to take from each feature. Raises ValueError that names the argument.
    """

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        dim: int = 64,
        *,
        distance: str = "sum",
        weights: Sequence[float] | None = None,
    ):
        super().__init__()
        self.student_channels = check_channels("student_channels", student_channels)
        self.teacher_channels = check_channels("teacher_channels", teacher_channels)
        check_count("dim", dim)
        check_choice("distance", distance, DISTANCES)
        n, m = len(self.student_channels), len(self.teacher_channels)
        self.distance, self.tap_options = distance, TapOptions(power=2, means=True)
        hold_weights(self, weights, m)
        self.keys = nn.ModuleList(NormalisedLinear(channels, dim) for channels in self.student_channels)
        self.key_mixer = NormalisedLinear(dim, dim * m, bias=False)  # alike for all i, softmax_i would not see it
        self.queries = nn.ModuleList(NormalisedLinear(channels, dim) for channels in self.teacher_channels)
        self.student_embedding = nn.Parameter(torch.randn(n, dim) / dim**0.5)
        self.teacher_embedding = nn.Parameter(torch.randn(m, dim) / dim**0.5)

    def from_taps(
        self, student: Taps, teacher: Taps, *, lengths: Tensor | None = None, padded_length: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Loss and attention of (maps, channel means) that `tap` took with `tap_options` from both networks' layers."""
        (student_maps, student_means), (teacher_maps, teacher_means) = student, teacher
        check_layer_count("student_features", len(student_maps), self.student_channels)
        check_layer_count("teacher_features", len(teacher_maps), self.teacher_channels)
        check_layer_channels("student_features", student_means, self.student_channels)
        check_layer_channels("teacher_features", teacher_means, self.teacher_channels)
        attention = self._attention(student_means, teacher_means)
        padding = padding_of([student, teacher], lengths, padded_length)
        loss = _attended(student_maps, teacher_maps, attention, self.distance, padding, self.weights)
        return loss, attention

    def _attention(self, student_means: list[Tensor], teacher_means: list[Tensor]) -> Tensor:
        (n, dim), m = self.student_embedding.shape, len(self.teacher_embedding)
        # Autocast would round the scores to half precision; they are too few to gain from it.
        with without_autocast(self.student_embedding):
            keys = [f(mean).relu() for f, mean in zip(self.keys, student_means, strict=True)]
            keys = self.key_mixer(torch.stack(keys, 1).view(-1, dim)).view(-1, n, m, dim)
            queries = torch.stack([f(mean) for f, mean in zip(self.queries, teacher_means, strict=True)], 1)
            positions = wide(self.student_embedding) @ wide(self.teacher_embedding).T
            return (((keys * queries[:, None]).sum(-1) + positions) / dim**0.5).softmax(1)
