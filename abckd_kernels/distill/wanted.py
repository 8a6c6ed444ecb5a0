"""What losses want of a network's layers, and what a pass of the network gave of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .layers import Layer


class Wanted(NamedTuple):
    """What a loss wants of a layer.

    layer   the layer, and how it is read.
    tap     options of `ops.tap`: its map and means are wanted; None: the feature.
    where   the layer as messages have it: "student_layers[0] 'encoder.0'".
    """

    layer: Layer
    tap: Mapping[str, Any] | None
    where: str


class Taken(NamedTuple):
    """What a forward pass gave.

    output    what the network returned.
    values    of each wanted one a list, an item per call of the layer: a feature (B, C, *spatial), vectors (B, D), or
              (map, mean or None).
    padding   {} or the lengths and padded_length that a packed sequence brings.
    joined    tensors of `output` whose backward the loss has to run, for layers in reentrant checkpoints.
    """

    output: Any
    values: list[list[Any]]
    padding: dict[str, Any] = {}
    joined: Sequence[Tensor] = ()


def wanted_of(layers: Sequence[str | Layer], argument: str, options: Mapping[str, Any] | None) -> list[Wanted]:
    """What a loss wants of each of the layers given as `argument`. Raises ValueError that names it."""
    if isinstance(layers, str | Layer) or not isinstance(layers, Sequence) or not layers:
        raise ValueError(f"{argument}: expected a non-empty list of layer names, got {layers!r}")
    wanted = []
    for index, text in enumerate(layers):
        try:
            layer = Layer.parse(text)
        except ValueError as error:
            raise ValueError(f"{argument}[{index}] {error}") from None
        wanted.append(Wanted(layer, options, f"{argument}[{index}] '{text}'"))
    return wanted
