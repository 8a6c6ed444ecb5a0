"""Attention transfer: the student's attention maps become the teacher's.

An attention map is the mean over channels of |x|^r at each position (`ops.tap`); a view of it is scaled to norm 1 in
each sample and compared with the teacher's. Maps are pooled, never features, so that opposite signs cannot cancel.

Source: Zagoruyko and Komodakis, Paying more attention to attention (ICLR 2017); the views: our reading of the abstract
of multi-view attention transfer (arXiv 2208.10367).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops import tap_all
from ..ops.shapes import accumulation_dtype, describe
from ..ops.tap import check_power
from .common.arithmetic import root
from .common.checks import check_choice
from .common.features import Padding, batch_mean, check_equal, check_pairs, checked, weighted
from .common.modules import Configured
from .common.taps import Taps, cells, distances, padding_of, tapped

__all__ = ["ATLoss", "at_loss"]

VIEWS = ("position", "time", "frequency", "channel")
DISTANCES = ("sum", "mean", "norm")
Features = Tensor | Sequence[Tensor]


def at_loss(
    student_features: Features,
    teacher_features: Features,
    *,
    power: int = 2,
    distance: str = "sum",
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

    Traffic: S and T read once forward; backward reads S and writes its gradient once. The view "channel" alone reads S
    once more each way.

    Raises TypeError or ValueError that names the argument.
    """
    views = _check_options(power, distance, views)
    students, teachers, padding = checked(student_features, teacher_features, lengths, padded_length)
    check_pairs(len(students), len(teachers))
    energies = []
    if "channel" in views:
        for index, (s, t) in enumerate(zip(students, teachers, strict=True)):
            check_equal(index, "channels", s.shape[1], t.shape[1])
        alone = views == ("channel",)
        both = [
            [_MapAndEnergies.apply(padding.zeroed(x), power, not alone) for x in group]
            for group in (students, teachers)
        ]
        maps, energies = ([[x[part] for x in group] for group in both] for part in range(2))
    else:
        maps = [taps.maps for taps in tapped(students, teachers, padding, power=power, means=False)]
    return _compared(maps, energies, distance, views, padding, weights)


class ATLoss(Configured):
    """at_loss with its options chosen once.

    Without the view "channel" a `Distiller` needs the attention maps only, and `tap_options` tells it so.

    Raises TypeError or ValueError that names the option.
    """

    function = staticmethod(at_loss)

    def __init__(self, **options):
        super().__init__(**options)
        power = options.get("power", 2)
        views = _check_options(power, options.get("distance", "sum"), options.get("views", ("position",)))
        self.tap_options = None if "channel" in views else {"power": check_power(power), "means": False}

    def from_taps(
        self, student: Taps, teacher: Taps, *, lengths: Tensor | None = None, padded_length: int | None = None
    ) -> tuple[Tensor, None]:
        """The loss of what `tap` took with `tap_options` from the layers of both networks; there is no attention."""
        check_pairs(len(student[0]), len(teacher[0]))
        maps, padding = [student[0], teacher[0]], padding_of([student, teacher], lengths, padded_length)
        distance, views = self.options.get("distance", "sum"), tuple(self.options.get("views", ("position",)))
        return _compared(maps, [], distance, views, padding, self.options.get("weights")), None


def _check_options(power: int, distance: str, views: Sequence[str]) -> tuple[str, ...]:
    check_power(power)
    check_choice("distance", distance, DISTANCES)
    names = isinstance(views, Sequence) and not isinstance(views, str) and all(isinstance(x, str) for x in views)
    if not names or not views or len(set(views)) != len(views):
        expected = f"a list of different ones of {', '.join(map(repr, VIEWS))}"
        raise ValueError(f"views: expected {expected}, got {describe(views)}")
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


def _view(x: Tensor, view: str, index: int) -> Tensor:
    if view == "time" and x.dim() == 3:
        return x.mean(2)
    if view == "frequency":
        if x.dim() != 3:
            raise ValueError(f"views: 'frequency' needs features (B, C, T, F), pair {index} has one without bands")
        return x.mean(1)  # over padded frames, too: they are zero, and what scales a view changes nothing
    return x


class _MapAndEnergies(torch.autograd.Function):
    """The attention map, or None, and the means over all positions of |x|^power (B, C) of a feature without padding.

    One gradient for both, so that it is rounded to the feature's dtype once: r |x|^(r-1) sign(x) (g_map / C + g / P).
    Forward reads the feature twice and makes nothing of its size; backward the gradient alone.
    """

    @staticmethod
    def forward(x, power, with_map):
        norms = torch.linalg.vector_norm(x.flatten(2), power, 2, dtype=accumulation_dtype(x.dtype))
        (energy_map,) = tap_all([x], power=power, means=False)[1] if with_map else (None,)
        return energy_map, norms**power / math.prod(x.shape[2:])

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.power, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, map_grad, grad):
        (x,) = ctx.saved_tensors
        values, slope = x if ctx.power == 2 else x.sign(), None
        if grad is not None:
            slope = (grad * (ctx.power / math.prod(x.shape[2:]))).view(*grad.shape, *[1] * (x.dim() - 2))
        if map_grad is not None:
            of_map = (map_grad * (ctx.power / x.shape[1])).unsqueeze(1)
            if slope is not None:
                return (slope + of_map).mul_(values).to(x.dtype), None, None
            slope = of_map
        return None if slope is None else (slope * values).to(x.dtype), None, None
