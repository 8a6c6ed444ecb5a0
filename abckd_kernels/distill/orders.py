"""The order of a feature's axes: (B, C, *spatial) is what losses read, transformers and recurrent layers give others.

Where a layer's order is not named, the network may tell: if the last axis has the size that the linear layers or layer
normalisations in it give, and the axis behind the batch is that of none of the network's convolutions, channels are
last. What was found for a layer at its first feature stays, and a warning says so once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_SPATIAL = "thwd"


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


def told_by(network: Any, module: Any, x: Tensor, where: str) -> str:
    """The order of a feature of `module`, of which nothing was said; "" if channels follow the batch."""
    if x.dim() not in (3, 4) or not isinstance(network, nn.Module):
        return ""
    layers = list(_sizes(module)) if isinstance(module, nn.Module) else []
    whole = list(_sizes(network))
    last = {size for size, of_last, _ in layers or whole if of_last}
    convolved = {size for size, of_last, _ in whole if not of_last}
    if x.shape[-1] not in last or x.shape[1] in convolved:
        return ""
    time_first = x.dim() == 3 and any(batch_first is False for _, _, batch_first in layers or whole)
    order = "tbc" if time_first else "b" + _SPATIAL[: x.dim() - 2] + "c"
    if torch.compiler.is_compiling():
        return order
    warnings.warn(
        f"{where}: its shape {tuple(x.shape)} ends with the size of its linear layers, so its axes are read as "
        f"'{order}'; name the order to say so, or otherwise: '...@{order}', '...@bc{_SPATIAL[: x.dim() - 2]}'",
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
