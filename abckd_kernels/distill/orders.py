"""The order of a feature's axes: (B, C, *spatial) is what losses read, transformers and recurrent layers give others.

Where a layer's order is not named, the network may tell: if the last axis has the size that the linear layers or layer
normalisations in it give, and the axis behind the batch is that of none of the network's convolutions, channels are
last. What was found for a layer at its first feature stays, and a warning says so once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

SPATIAL = "thwd"


def to_channels_first(x: Tensor, order: str, where: str) -> Tensor:
    """A view (B, C, *spatial) of `x`, whose axes are in `order`. Raises ValueError that names the layer."""
    if x.dim() != len(order):
        raise ValueError(f"{where}: '{order}' names {len(order)} axes, it has the shape {tuple(x.shape)}")
    return x.permute(_places(order))


def from_channels_first(x: Tensor, order: str) -> Tensor:
    """The view whose `to_channels_first` is `x`."""
    places = _places(order)
    return x.permute([places.index(axis) for axis in range(len(places))])


def _places(order: str) -> list[int]:
    return [order.index("b"), order.index("c"), *(k for k, letter in enumerate(order) if letter not in "bc")]


class Sizes(NamedTuple):
    """What a network tells of a layer's axes.

    last         sizes that its linear layers and layer normalisations give the last axis.
    convolved    sizes that the network's convolutions and batch normalisations give the axis behind the batch.
    time_first   a recurrent or attention layer has time before the batch.
    """

    last: frozenset[int] = frozenset()
    convolved: frozenset[int] = frozenset()
    time_first: bool = False


def sizes_of(network: Any, module: Any) -> Sizes:
    """What `network` tells of what its `module` gives."""
    if not isinstance(network, nn.Module):
        return Sizes()
    whole = list(_sizes(network))
    layers = list(_sizes(module)) or whole
    return Sizes(
        frozenset(size for size, of_last, _ in layers if of_last),
        frozenset(size for size, of_last, _ in whole if not of_last),
        any(batch_first is False for _, _, batch_first in layers),
    )


def told_by(sizes: Sizes, x: Tensor, where: str) -> str:
    """The order of a feature of which nothing was said; "" if channels follow the batch."""
    if x.dim() not in (3, 4) or x.shape[-1] not in sizes.last or x.shape[1] in sizes.convolved:
        return ""
    order = "tbc" if sizes.time_first and x.dim() == 3 else f"b{SPATIAL[: x.dim() - 2]}c"
    if not torch.compiler.is_compiling():
        warnings.warn(
            f"{where}: its shape {tuple(x.shape)} ends with the size of its linear layers, so its axes are read as "
            f"'{order}'; name the order to say so, or otherwise: '...@{order}', '...@bc{SPATIAL[: x.dim() - 2]}'",
            stacklevel=2,
        )
    return order


def _sizes(module: nn.Module) -> Iterator[tuple[int, bool, bool | None]]:
    """(size, whether it is that of the last axis, `batch_first` or None) of each layer that gives an axis its size."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            yield layer.out_features, True, None
        elif isinstance(layer, nn.LayerNorm):
            yield layer.normalized_shape[-1], True, None
        elif isinstance(layer, nn.RNNBase):
            yield (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1), True, layer.batch_first
        elif isinstance(layer, nn.MultiheadAttention):
            yield layer.embed_dim, True, layer.batch_first
        elif isinstance(layer, nn.modules.conv._ConvNd):
            yield layer.out_channels, False, None
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            yield layer.num_features, False, None
