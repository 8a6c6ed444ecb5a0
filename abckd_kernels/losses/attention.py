"""Attention transfer: the student's attention maps become the teacher's.

An attention map is the mean over channels of |x|^r at each position (`ops.tap`); a view of it is scaled to norm 1 in
each sample and compared with the teacher's. Maps are pooled, never features, so that opposite signs cannot cancel.

Source: Zagoruyko and Komodakis, Paying more attention to attention (ICLR 2017); the views: our reading of the abstract
of multi-view attention transfer (arXiv 2208.10367).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..ops.shapes import describe
from ..ops.tap import check_power
from .common.arithmetic import root, wide
from .common.checks import check_choice
from .common.features import Padding, batch_mean, check_equal, check_pairs, checked, weighted
from .common.modules import Configured
from .common.options import check_options
from .common.taps import TapOptions, Taps, cells, distances, padding_of, tapped

__all__ = ["ATLoss", "at_loss"]

VIEWS = ("position", "time", "frequency", "channel")
Features = Tensor | Sequence[Tensor]


def at_loss(
    student_features: Features,
    teacher_features: Features,
    *,
    power: int = 2,
    distance: Literal["sum", "mean", "norm"] = "sum",
    views: Sequence[str] = ("position",),
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Attention transfer (the definition is at the top of this module).

    a = the map mean_c |x|^r of one sample scaled to norm 1, L = mean over samples of ||a_s - a_t||^2, within [0, 2].

    student_features   a feature or a list of n, (B, C, T), (B, C, T, F) or (B, C, H, W); float32, float64, bfloat16 or
                       float16.
    teacher_features   as many; detached. Channels and sizes need not agree: both maps are pooled to the smaller size of
                       each axis.
    power              r, 1 or 2.
    distance           "sum": ||a_s - a_t||^2. "mean": that over the number of positions, as the authors' code and its
                       successors have it: its gradients are so small that float16 flushes them to zero. "norm":
                       ||a_s - a_t||, not squared, as in the paper; with zero gradient at equality.
    views              what to compare; L is the mean over views. "position": the map. "time": its means over bands,
                       (B, T); "frequency": over frames, (B, F), of features with bands. "channel": the means over
                       positions of |x|^r, (B, C), of features with equal channels.
    lengths            (B,) integers: valid frames; later ones count nowhere.
    padded_length      the frames to which lengths refer; default: T of the feature with most.
    weights            n numbers; default 1/n.

    Returns a scalar in float32 (float64 if a feature is). A silent sample has a zero map: finite loss, zero gradient.

    Published: RepDistiller, mdistiller and torchdistill's "code" are distance="mean", weights=[1] * n for equal sizes;
    for others they pool the features themselves, to a square. torchdistill's "paper" is distance="norm".

    Traffic: S and T read once forward; backward reads S and writes its gradient once. With the view "channel" S
    is read once more each way, its gradient is the sum of two.

    Raises TypeError or ValueError that names the argument.
    """
    check_options(at_loss, distance=distance)
    views = _checked_views(views)
    students, teachers, padding = checked(student_features, teacher_features, lengths, padded_length)
    check_pairs(len(students), len(teachers))
    energies = []
    if "channel" in views:
        for index, (s, t) in enumerate(zip(students, teachers, strict=True)):
            check_equal(index, "channels", s.shape[1], t.shape[1])
        # Widened once, in front of both: in half precision their gradient is a sum, to be rounded once.
        students, teachers = ([wide(padding.zeroed(x)) for x in group] for group in (students, teachers))
        energies = [[_channel_energies(x, power) for x in group] for group in (students, teachers)]
        maps = energies
        if views != ("channel",):
            maps = [taps.maps for taps in tapped(students, teachers, padding, power=power, means=False)]
    else:
        maps = [taps.maps for taps in tapped(students, teachers, padding, power=power, means=False)]
    return _compared(maps, energies, distance, views, padding, weights)


class ATLoss(Configured, function=at_loss):
    """at_loss with its options chosen once.

    Without the view "channel" a `Distiller` needs the attention maps only, and `tap_options` tells it so.

    Raises TypeError or ValueError that names the option.
    """

    def __init__(self, **options):
        super().__init__(**options)
        views = _checked_views(options.get("views", ("position",)))
        power = check_power(options.get("power", 2))
        self.tap_options = None if "channel" in views else TapOptions(power=power, means=False)

    def from_taps(
        self, student: Taps, teacher: Taps, *, lengths: Tensor | None = None, padded_length: int | None = None
    ) -> tuple[Tensor, None]:
        """The loss of what `tap` took with `tap_options` from the layers of both networks; there is no attention."""
        check_pairs(len(student[0]), len(teacher[0]))
        maps, padding = [student[0], teacher[0]], padding_of([student, teacher], lengths, padded_length)
        distance, views = self.options.get("distance", "sum"), tuple(self.options.get("views", ("position",)))
        return _compared(maps, [], distance, views, padding, self.weights), None


def _checked_views(views: Sequence[str]) -> tuple[str, ...]:
    if not isinstance(views, list | tuple) or not views or len(set(views)) != len(views):
        known = ", ".join(map(repr, VIEWS))
        raise ValueError(f"views: expected a list of different ones of {known}, got {describe(views)}")
    for view in views:
        check_choice("views", view, VIEWS)
    return tuple(views)


def _compared(maps, energies, distance, views, padding, weights) -> Tensor:
    """The loss from maps [student's, teacher's] and, for the view "channel", energies [student's, teacher's]."""
    losses, compared = [], []
    for index in range(len(maps[0])):
        per_view = []
        for view in views:
            group = energies if view == "channel" else maps
            s, t = (_view(x[index], view, index) for x in group)
            check_equal(index, "number of axes", s.dim() + 1, t.dim() + 1)
            on_frames = padding if view in ("position", "time") else Padding(None, 1)
            grid = [min(sizes) for sizes in zip(s.shape[1:], t.shape[1:], strict=True)]
            per_sample = distances([s], t, grid, on_frames)[:, 0]
            if distance == "mean":
                per_sample = per_sample / cells(grid, on_frames)
            if distance == "norm":
                # What is left of two equal maps is rounding, whose norm would have a gradient of ordinary size.
                noise = (8 * torch.finfo(per_sample.dtype).eps) ** 2
                per_sample = root(per_sample.masked_fill(per_sample <= noise, 0))
            per_view.append(batch_mean(per_sample))
            compared.append((s, t))
        losses.append(torch.stack(per_view).mean())
    return weighted(losses, weights, compared)


def _channel_energies(x: Tensor, power: int) -> Tensor:
    """Means over all positions of |x|^power, (B, C), of a feature without padding."""
    return torch.linalg.vector_norm(x.flatten(2), power, 2) ** power / math.prod(x.shape[2:])


def _view(x: Tensor, view: str, index: int) -> Tensor:
    if view == "time" and x.dim() == 3:
        return x.mean(2)
    if view == "frequency":
        if x.dim() != 3:
            raise ValueError(f"views: 'frequency' needs features (B, C, T, F), pair {index} has one without bands")
        return x.mean(1)  # over padded frames, too: they are zero, and what scales a view changes nothing
    return x
