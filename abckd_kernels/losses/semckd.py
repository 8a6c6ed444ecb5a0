"""Semantic calibration: every student layer learns from all teacher layers, as much from each as an attention says.

For n student and m teacher layers, with p_ij = a learned projection of student layer i onto the channels of teacher
layer j, both averaged over the windows of adaptive pooling onto the smaller size of each axis,

    L = sum_i weights[i] mean_b sum_j attention[b, i, j] mean (p_ij - t_j)^2,   sum_j attention[b, i, j] = 1

where the inner mean is over channels and valid positions.

Source: Chen et al., Cross-layer distillation with semantic calibration (AAAI 2021), and its published code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..ops import pointwise, project, tap_all
from ..ops.shapes import describe
from .common.arithmetic import unit, wide
from .common.checks import (
    check_channels,
    check_choice,
    check_count,
    check_layer_channels,
    check_layer_count,
    listed,
)
from .common.features import Padding, batch_mean, checked, on_one_grid, weighted, without_autocast
from .common.modules import hold_weights
from .common.normalisation import Linear, ValidBatchNorm, convolution
from .common.taps import cells
from .relations._gram import between_samples

__all__ = ["SemCKDLoss", "semckd_loss"]

Features = Tensor | Sequence[Tensor]


def semckd_loss(
    student_features: Features | Sequence[Sequence[Tensor]],
    teacher_features: Features,
    *,
    attention: Tensor | None = None,
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Semantic calibration of projected features (the definition is at the top of this module).

    student_features   n items, each the projections p_i1 .. p_im of a student layer, with the channels of the teacher
                       layers, or one feature in place of them all. (B, C, T), (B, C, T, F) or (B, C, H, W); float32,
                       float64, bfloat16 or float16.
    teacher_features   a feature or a list of m; detached. Sizes may differ from the student's, channels may not
                       (`SemCKDLoss` projects).
    attention          (B, n, m), how much student layer i learns from teacher layer j in each sample; it gets
                       gradients. Default: 1/m.
    lengths            (B,) integers: valid frames; later ones count nowhere.
    padded_length      the frames to which lengths refer; default: T of the feature with most.
    weights            n numbers, one per student layer; default 1/n, as published.

    Returns a scalar in float32 (float64 if a feature is). Raises TypeError or ValueError that names the argument; layer
    j of item i is student_features[i * m + j].
    """
    groups: Sequence[Features] = [student_features] if isinstance(student_features, Tensor) else student_features
    flattened = [y for index, x in enumerate(groups) for y in listed(f"student_features[{index}]", x)]
    students, teachers, padding = checked(flattened, teacher_features, lengths, padded_length)
    m, given = len(teachers), iter([padding.zeroed(wide(x)) for x in students])
    projected = []
    for index, x in enumerate(groups):
        if isinstance(x, Tensor):
            projected.append([next(given)] * m)
        elif len(x) == m:
            projected.append([next(given) for _ in x])
        else:
            raise ValueError(f"student_features[{index}]: expected a feature or {m}, one per teacher, got {len(x)}")
    for i, group in enumerate(projected):
        for j, (s, t) in enumerate(zip(group, teachers, strict=True)):
            if s.dim() != t.dim() or s.shape[1] != t.shape[1]:
                expected = f"{t.dim()} axes and {t.shape[1]} channels as in teacher_features[{j}]"
                raise ValueError(f"student_features[{i}]: expected {expected}, got {s.dim()} and {s.shape[1]}")
    return _calibrated(
        projected,
        [padding.zeroed(t) for t in teachers],
        lambda i, j, s, t: _squared_error(s, t),
        attention,
        padding,
        weights,
    )


def _calibrated(
    students: list[list[Tensor]],
    teachers: list[Tensor],
    error: Callable[[int, int, Tensor, Tensor], Tensor],
    attention: Tensor | None,
    padding: Padding,
    weights,
) -> Tensor:
    """The loss from error(i, j, s, t): per-sample sums (B,) of squares, of layers that have the same size."""
    batch, n, m = teachers[0].shape[0], len(students), len(teachers)
    if attention is not None and (not isinstance(attention, Tensor) or attention.shape != (batch, n, m)):
        got = tuple(attention.shape) if isinstance(attention, Tensor) else attention
        raise ValueError(f"attention: expected a tensor {(batch, n, m)}, got {describe(got)}")
    losses = []
    for i, group in enumerate(students):
        errors = []
        for j, (s, t) in enumerate(zip(group, teachers, strict=True)):
            s, t = on_one_grid(s, t, padding, zeroed=True)
            errors.append(error(i, j, s, t) / (cells(s.shape[2:], padding) * t.shape[1]))
        by_teacher = torch.stack(errors, 1)
        shares = None if attention is None else attention[:, i].to(by_teacher)
        per_sample = by_teacher.mean(1) if shares is None else (shares * by_teacher).sum(1)
        losses.append(batch_mean(per_sample))
    return weighted(losses, weights, (*students, teachers))


def _squared_error(s: Tensor, t: Tensor) -> Tensor:
    """Sums of (s - t)^2, (B,); frames that are not valid are zero in both."""
    return pointwise(s, t, kind="squared").sum(1)


class SemCKDLoss(nn.Module):
    """`semckd_loss` with learned projections, and an attention over the teacher's layers for each student layer.

        attention_ij = softmax_j q_i . k_j,   q_i = MLP_i(mu(S_i)) and k_j = MLP_j(mu(T_j)), scaled to norm 1

    student_channels   C of the n student layers.
    teacher_channels   C of the m teacher layers.
    dim                size of queries and keys; an MLP is linear, ReLU, linear with 2 dim units between.
    regressor          "linear": p_ij is a 1x1 convolution. "convolutions": 1x1, 3x3 and 1x1 with batch normalisation
                       (over valid frames) and ReLU between, of 2 C_j channels, as published: n m times as many
                       operations as all else, and its activations kept for backward.
    batch_size         None: mu(X) = the channel means of the sample, our reading, so that neither batch size nor the
                       other samples matter. B: the sample's row of the Gram matrix of the batch, as published, which
                       ties the state dict to batches of B.
    spatial_axes       1 for (B, C, T), 2 for (B, C, T, F).
    weights            n numbers; default 1/n.

    The state dict depends on channels and dim only (without batch_size): queries, keys, regressors. The published loss
    is dim=B // 4, regressor="convolutions", batch_size=B; it pools to squares only.

    Raises TypeError or ValueError that names the argument.
    """

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        dim: int = 64,
        *,
        regressor: str = "linear",
        batch_size: int | None = None,
        spatial_axes: int = 2,
        weights: Sequence[float] | None = None,
    ):
        super().__init__()
        self.student_channels = check_channels("student_channels", student_channels)
        self.teacher_channels = check_channels("teacher_channels", teacher_channels)
        check_count("dim", dim)
        check_choice("regressor", regressor, ("linear", "convolutions"))
        if batch_size is not None:
            check_count("batch_size", batch_size)
        of_axes = convolution(spatial_axes)
        self.batch_size, self.spatial_axes = batch_size, spatial_axes
        hold_weights(self, weights, len(self.student_channels))
        self.queries, self.keys = (
            nn.ModuleList(
                nn.Sequential(Linear(batch_size or inputs, 2 * dim), nn.ReLU(), Linear(2 * dim, dim))
                for inputs in channels
            )
            for channels in (self.student_channels, self.teacher_channels)
        )
        make = _Linear if regressor == "linear" else _Convolutions
        self.regressors = nn.ModuleList(
            _Regressors(make(s, t, of_axes) for t in self.teacher_channels) for s in self.student_channels
        )

    def forward(
        self,
        student_features: Features,
        teacher_features: Features,
        *,
        lengths: Tensor | None = None,
        padded_length: int | None = None,
        return_attention: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The loss of features in the order of the channels given at construction; (loss, attention) if asked for."""
        students, teachers, padding = checked(student_features, teacher_features, lengths, padded_length)
        for name, features, channels in (
            ("student_features", students, self.student_channels),
            ("teacher_features", teachers, self.teacher_channels),
        ):
            check_layer_count(name, len(features), channels)
            check_layer_channels(name, features, channels)
            for index, x in enumerate(features):
                if x.dim() != 2 + self.spatial_axes:
                    raise ValueError(f"{name}[{index}]: expected {2 + self.spatial_axes} axes, got {tuple(x.shape)}")
        # Half features are widened first: their gradient is a sum over teacher layers, to be rounded once.
        students, teachers = [padding.zeroed(wide(x)) for x in students], [padding.zeroed(x) for x in teachers]
        # Autocast would round the projections to half precision before their difference is taken.
        with without_autocast(students[0]):
            students, attention = self._attention(students, teachers, padding)
            loss = _calibrated(
                [[s] * len(teachers) for s in students],
                teachers,
                lambda i, j, s, t: self.regressors[i](j, s, t, padding),
                attention,
                padding,
                self.weights,
            )
        return (loss, attention) if return_attention else loss

    def _attention(self, students, teachers, padding) -> tuple[list[Tensor], Tensor]:
        """The student's features, to be used from here on, and the attention (B, n, m)."""
        n = len(students)
        if self.batch_size is None:
            features, _, summaries = tap_all([*students, *teachers], **padding._asdict())
            students = features[:n]
        elif len(students[0]) != self.batch_size:
            raise ValueError(f"student_features[0]: expected batch_size {self.batch_size}, got {len(students[0])}")
        else:
            summaries = [between_samples(x) for x in (*students, *teachers)]
        embedded = [
            unit(f(x)) for f, x in zip((*self.queries, *self.keys), summaries, strict=True)
        ]  # n queries, m keys
        queries, keys = torch.stack(embedded[:n], 1), torch.stack(embedded[n:], 1)
        return students, (queries @ keys.mT).softmax(2)


class _Regressors(nn.ModuleList):
    """Those of a student layer, one per teacher layer."""

    def forward(self, j: int, s: Tensor, t: Tensor, padding: Padding) -> Tensor:
        return self[j](s, t, padding)


class _Linear(nn.Linear):
    """A 1x1 convolution of features with any number of spatial axes."""

    def __init__(self, inputs: int, outputs: int, of_axes: Callable[..., nn.Module]):
        super().__init__(inputs, outputs)

    def forward(self, s: Tensor, t: Tensor, padding: Padding) -> Tensor:  # type: ignore[override]
        """Sums of squares of the projection's error, (B,)."""
        return project(s, wide(self.weight), t, bias=wide(self.bias), **padding._asdict())


class _Convolutions(nn.Module):
    """The published regressor."""

    def __init__(self, inputs: int, outputs: int, of_axes: Callable[..., nn.Module]):
        super().__init__()
        width = 2 * outputs
        self.convolutions = nn.ModuleList(
            [
                of_axes(inputs, width, 1, bias=False),
                of_axes(width, width, 3, padding=1, bias=False),
                of_axes(width, outputs, 1, bias=False),
            ]
        )
        self.norms = nn.ModuleList(ValidBatchNorm(width) for _ in range(2))

    def forward(self, s: Tensor, t: Tensor, padding: Padding) -> Tensor:
        """Sums of squares of the projection's error, (B,); zero in frames that are not valid, as the target is."""
        x = s
        for layer, norm in zip(self.convolutions, self.norms, strict=False):
            x = norm(layer(x), padding).relu_()  # in place: the norm needs its result no more
        return _squared_error(self.convolutions[2](x), t)
