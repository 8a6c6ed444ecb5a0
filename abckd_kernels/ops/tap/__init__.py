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

import torch
from torch import Tensor

from ... import backends
from .. import shapes

FORWARD = "(Tensor[] features, int power, bool means, Tensor? lengths, SymInt padded_length) -> (Tensor[], Tensor[])"
BACKWARD = (
    "(Tensor?[] grads, Tensor[] features, Tensor?[] map_grads, Tensor?[] mean_grads,"
    " int power, Tensor? lengths, SymInt padded_length) -> Tensor[]"
)


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
    features = list(features)
    if not (torch.is_grad_enabled() and any(x.requires_grad for x in features)):
        kernel = backends.kernel("tap_forward", features[0].device)
        return features, *kernel(features, power, means, lengths, padded_length)
    extension = backends.extension()
    if extension is not None and not torch.compiler.is_compiling():
        if backends.is_native(backends.choose("tap_forward", features[0].device.type)):
            return extension.tap(features, power, means, lengths, padded_length)
    outputs = _PassThrough.apply(power, means, lengths, padded_length, *features)
    count = len(features)
    return list(outputs[:count]), list(outputs[count : 2 * count]), list(outputs[2 * count :])


def check_power(power: int) -> int:
    """`power` as an int. Raises ValueError unless it is 1 or 2."""
    if power not in (1, 2):
        raise ValueError(f"power: expected 1 or 2, got {power!r}")
    return int(power)


class _PassThrough(torch.autograd.Function):
    """tap with the features among its outputs, which no dispatcher op may do. `_C.tap` is the same in C++."""

    @staticmethod
    def forward(ctx, power, means, lengths, padded_length, *features):
        ctx.set_materialize_grads(False)
        ctx.options = (power, lengths, padded_length)
        ctx.save_for_backward(*(x for x, needed in zip(features, ctx.needs_input_grad[4:], strict=True) if needed))
        kernel = backends.kernel("tap_forward", features[0].device)
        maps, channel_means = kernel(list(features), power, means, lengths, padded_length)
        return (*features, *maps, *channel_means)

    @staticmethod
    def backward(ctx, *grads):
        needed = ctx.needs_input_grad[4:]
        count = len(needed)
        no_means = [None] * count
        by_output = grads[:count], grads[count : 2 * count], grads[2 * count :] or no_means
        return (None, None, None, None, *_feature_grads(ctx.saved_tensors, needed, *by_output, *ctx.options))


def _feature_grads(saved, needed, grads, map_grads, mean_grads, power, lengths, padded_length) -> list[Tensor | None]:
    """Gradients of all features: None where none is needed or nothing arrives; `saved`: those needed."""
    results: list[Tensor | None] = [None] * len(needed)
    wanted = [index for index, is_needed in enumerate(needed) if is_needed]
    saved = dict(zip(wanted, saved, strict=True))
    reached = []
    for index in wanted:
        if map_grads[index] is not None or mean_grads[index] is not None:
            reached.append(index)
        else:
            results[index] = grads[index]
    if reached:
        kernel = backends.kernel("tap_backward", saved[reached[0]].device)
        pick = lambda items: [items[index] for index in reached]  # noqa: E731
        fresh = kernel(pick(grads), pick(saved), pick(map_grads), pick(mean_grads), power, lengths, padded_length)
        for index, grad in zip(reached, fresh, strict=True):
            results[index] = backends.refuse_second_derivative(grad)
    return results


def _forward_fake(features, power, means, lengths, padded_length):
    maps = [x.new_empty((x.shape[0], *x.shape[2:]), dtype=shapes.accumulation_dtype(x.dtype)) for x in features]
    channel_means = [x.new_empty(x.shape[:2], dtype=shapes.accumulation_dtype(x.dtype)) for x in features if means]
    return maps, channel_means


def _backward_fake(grads, features, map_grads, mean_grads, power, lengths, padded_length):
    return [shapes.empty_like(x) for x in features]


def _setup_context(ctx, inputs, output):
    features, power, means, lengths, padded_length = inputs
    ctx.set_materialize_grads(False)
    ctx.options = (power, lengths, padded_length)
    # Here needs_input_grad is flat, and the features come first; in _backward it is nested like the arguments.
    ctx.save_for_backward(*(x for x, needed in zip(features, ctx.needs_input_grad, strict=False) if needed))


def _backward(ctx, map_grads, mean_grads):
    needed = ctx.needs_input_grad[0]
    nothing = [None] * len(needed)
    grads = _feature_grads(
        ctx.saved_tensors, needed, nothing, map_grads or nothing, mean_grads or nothing, *ctx.options
    )
    return grads, None, None, None, None


backends.define("tap_forward", FORWARD, folder=__name__, function="forward", fake=_forward_fake, native=("cpu", "cuda"))
backends.define(
    "tap_backward", BACKWARD, folder=__name__, function="backward", fake=_backward_fake, native=("cpu", "cuda")
)
backends.differentiate("tap_forward", _backward, _setup_context)
