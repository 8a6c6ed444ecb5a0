"""A tensor as a network has it, and the feature (B, C, *spatial) that a loss reads of it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from .layers import Layer
from .orders import Sizes, from_channels_first, to_channels_first, told_by


class Read(NamedTuple):
    """What was read.

    feature   (B, C, *spatial), or vectors (B, D).
    order     of the axes of the tensor that the network has, "" if they are the feature's; None: the feature is not
              that tensor in another order, so it cannot go back into the network.
    padding   lengths and padded_length that a packed sequence brings, or nothing.
    """

    feature: Tensor
    order: str | None
    padding: dict[str, Any] = {}

    def back(self, feature: Tensor) -> Tensor:
        """A feature in the order in which the network has its axes."""
        return from_channels_first(feature, self.order) if self.order else feature


def read(found: Any, layer: Layer, order: str | None, sizes: Sizes, where: str) -> tuple[Read, str | None]:
    """The feature of what a layer gave; and the order of its axes, that is then known.

    order   known already: "" if channels follow the batch, None if `sizes` are to tell.

    Raises ValueError that names the layer.
    """
    if isinstance(found, PackedSequence):
        x, lengths = pad_packed_sequence(found, batch_first=True)
        x = x if layer.transform is None else layer.transform(x)
        return Read(x.movedim(-1, 1), None, {"lengths": lengths.to(x.device), "padded_length": x.shape[1]}), order
    if not isinstance(found, Tensor):
        example = f", as in '{layer.name}:0'" if isinstance(found, tuple | list | dict) else ""
        raise ValueError(f"{where} returns a {type(found).__name__}; choose a tensor in it{example}")
    if found.is_nested:
        raise ValueError(
            f"{where} returns a nested tensor, whose items have shapes of their own; losses read padded batches: "
            "turn nested tensors off (enable_nested_tensor=False of nn.TransformerEncoder), or name a layer behind"
        )
    x, whole = found, True
    if type(found).__name__ == "DTensor":
        x, whole = found.full_tensor(), False  # type: ignore[attr-defined]
    if layer.transform is not None:
        x, whole = layer.transform(x), False
        if not isinstance(x, Tensor):
            raise ValueError(f"{where}: transform= returned a {type(x).__name__}, not a tensor")
    if layer.order is not None:
        return Read(to_channels_first(x, layer.order, where), layer.order if whole else None), order
    if order is None:
        order = told_by(sizes, x, where)
    here = order if x.dim() == len(order) else ""
    return Read(to_channels_first(x, here, where) if here else x, here if whole else None), order


def check_tappable(x: Tensor, where: str) -> None:
    """Raise ValueError, naming the layer, unless a feature has one or two axes of positions."""
    if x.dim() == 2:
        raise ValueError(f"{where} gives vectors {tuple(x.shape)}; this loss compares positions, which they don't have")
    if x.dim() > 4:
        raise ValueError(
            f"{where} gives volumes {tuple(x.shape)}; this loss reads one or two axes of positions: join two with "
            "Layer(..., transform=lambda x: x.flatten(3)), where both networks agree in them"
        )


def is_constant(map: Tensor) -> bool:
    """Whether a map (B, *spatial) has the same value at all positions, and is not silence. Waits for the device."""
    flat = map.detach().flatten(1)
    if not flat.numel() or flat.shape[1] == 1:
        return False
    least, most = flat.amin(1), flat.amax(1)
    return bool((((most - least) <= 1e-3 * most).all() & (most > 0).any()).item())
