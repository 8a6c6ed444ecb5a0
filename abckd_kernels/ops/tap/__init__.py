"""tap: the attention map and the channel means of a feature, in the one pass that reads it.

For a feature x (B, C, *spatial), r = power in {1, 2}, P valid positions in sample b (see ops.shapes on padding):

    map[b, p]  = 1/C sum_c |x[b, c, p]|^r        (B, *spatial), zero at padded positions
    mean[b, c] = 1/P sum_p x[b, c, p]            (B, C)

Both are float32 (float64 for float64 features). The map has the feature's own resolution: pooling it to a grid
commutes with the mean over channels, so `compress` pools the small map instead of the feature.

Derivative, with gm and gc the gradients of map and mean and g the one that the rest of the network sends to x:

    gx[b, c, p] = g[b, c, p] + gm[b, p] * r |x|^(r-1) sign(x) / C + gc[b, c] / P

Bytes, with S the size of the feature: forward reads S, writes S/C; backward reads S and g, writes gx. To have g at
hand, tap returns the feature as its first output: autograd then sums nothing that is as large as a feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .. import shapes
from ..contract import op


class Tapped(NamedTuple):
    """What `tap` returns: the feature, to be used in its place; its attention map; its channel means or None."""

    feature: Tensor
    map: Tensor
    mean: Tensor | None


def tap(
    feature: Tensor,
    *,
    power: int = 2,
    means: bool = True,
    lengths: Tensor | None = None,
    padded_length: int | None = None,
) -> Tapped:
    """Attention map and channel means of one feature (the definition is at the top of this module).

    feature         (B, C, T), (B, C, T, F) or (B, C, H, W); float32, float64, bfloat16 or float16. Contiguous and
                    channels_last are read as they lie, another layout costs a copy.
    power           r, 1 or 2.
    means           False leaves the means out.
    lengths         (B,) integers: valid frames.
    padded_length   the frames to which lengths refer; default: the feature's own T.

    Returns Tapped(feature, map (B, *spatial), mean (B, C) or None). Use the returned feature in place of the given
    one: it equals it, and the gradient that reaches it is added in the pass that writes the feature's gradient.
    Changing it in place raises autograd's error, because backward reads it.

    Raises TypeError or ValueError that names the argument. Source: our reading of ABC-KD, arXiv 2305.16665.
    """
    features, maps, channel_means = tap_all(
        [feature], power=power, means=means, lengths=lengths, padded_length=padded_length
    )
    return Tapped(features[0], maps[0], channel_means[0] if means else None)


def tap_all(
    features: Sequence[Tensor],
    *,
    power: int = 2,
    means: bool = True,
    lengths: Tensor | None = None,
    padded_length: int | None = None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """As `tap` for several features of one batch: one call, on a GPU a launch per dtype and layout, one more for means.

    padded_length defaults to the largest T among the features.
    Returns the lists of features, maps and means (empty if `means` is False).
    """
    shapes.check_features(features, "features")
    power = check_power(power)
    frames = max(x.shape[2] for x in features)
    padded_length = shapes.check_padded_length(frames if padded_length is None else padded_length)
    lengths = shapes.check_lengths(lengths, features[0].shape[0], features[0].device)
    return _tap(list(features), power, means, lengths, padded_length)


def check_power(power: int) -> int:
    """`power` as an int. Raises ValueError unless it is 1 or 2."""
    if not isinstance(power, int | float) or power not in (1, 2):
        raise ValueError(f"power: expected 1 or 2, got {shapes.describe(power)}")
    return int(power)


def _forward_shapes(features, power, means, lengths, padded_length):
    maps = [x.new_empty((x.shape[0], *x.shape[2:]), dtype=shapes.accumulation_dtype(x.dtype)) for x in features]
    channel_means = [x.new_empty(x.shape[:2], dtype=shapes.accumulation_dtype(x.dtype)) for x in features if means]
    return maps, channel_means


def _backward_shapes(grad_features, features, grad_maps, grad_channel_means, power, lengths, padded_length):
    return [shapes.empty_like(x) for x in features]


OPTIONS = "Tensor? lengths, SymInt padded_length"
_tap = op(
    __name__,
    forward=f"(Tensor[] features, int power, bool means, {OPTIONS}) -> (Tensor[] maps, Tensor[] channel_means)",
    backward="(Tensor?[] grad_features, Tensor[] features, Tensor?[] grad_maps, Tensor?[] grad_channel_means,"
    f" int power, {OPTIONS}) -> Tensor[] features",
    forward_shapes=_forward_shapes,
    backward_shapes=_backward_shapes,
    native=("cpu", "cuda"),
)
