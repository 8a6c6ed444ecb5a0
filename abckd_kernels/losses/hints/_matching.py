"""What hint losses share: pairs of features of one size, and their means from the sums that `pointwise` gives."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ...ops import pointwise
from ...ops.shapes import accumulation_dtype
from ..common.features import Padding, check_equal, on_one_grid, pairs, without_autocast

Features = Tensor | Sequence[Tensor]
Channels = int | Sequence[int]
EVERYWHERE = Padding(None, 1)  # every frame is valid


def matched(
    student_features: Features,
    teacher_features: Features,
    lengths: Tensor | None,
    padded_length: int | None,
    *,
    vectors: bool = False,
) -> tuple[list[tuple[Tensor, Tensor]], Padding]:
    """As features.pairs, of equal channels and, by adaptive average pooling onto the smaller size, of equal sizes.

    vectors   features may be (B, D), too; they come back as (B, 1, D).

    Padded frames hold anything: `pointwise` does not read them. Raises TypeError or ValueError that names the argument.
    """
    found, padding = pairs(student_features, teacher_features, lengths, padded_length, vectors=vectors, zeroed=False)
    for index, (s, t) in enumerate(found):
        check_equal(index, "number of axes", s.dim(), t.dim())
        check_equal(index, "channels", s.shape[1], t.shape[1])
    vector_to_feature = lambda x: x[:, None] if x.dim() == 2 else x  # noqa: E731
    return [on_one_grid(vector_to_feature(s), vector_to_feature(t), padding, zeroed=False) for s, t in found], padding


def sums(s: Tensor, t: Tensor, padding: Padding, **kind) -> Tensor:
    """pointwise(s, t), (B, C), over the valid frames."""
    return pointwise(s, t, lengths=padding.lengths, padded_length=padding.padded_length, **kind)


def element_mean(of_channels: Tensor, x: Tensor, padding: Padding) -> Tensor:
    """(B,): sums (B, C) over the valid positions of `x`, as means over these positions and channels."""
    return of_channels.sum(1) / (x.shape[1] * padding.positions(x))


def channel_pairs(student_channels: Channels, teacher_channels: Channels) -> list[tuple[int, int]]:
    """[(student's, teacher's channels), ...] of a module's layers. Raises ValueError."""
    both = [[c] if isinstance(c, int) else list(c) for c in (student_channels, teacher_channels)]
    for name, channels in zip(("student_channels", "teacher_channels"), both, strict=True):
        if not channels or any(not isinstance(c, int) or c < 1 for c in channels):
            raise ValueError(f"{name}: expected a positive whole number or a list of them, got {channels!r}")
    if len(both[0]) != len(both[1]):
        raise ValueError(f"teacher_channels: expected {len(both[0])} numbers, one per layer, got {len(both[1])}")
    return list(zip(*both, strict=True))


class Learned(nn.Module):
    """A loss with learned parts for each layer, `layers`. Subclasses say what they measure of a pair, and the loss.

    forward takes one feature or a list with one per layer; teacher features are detached.
    """

    def __init__(self, layers: Sequence[nn.Module], channels: list[tuple[int, int]], options: dict):
        super().__init__()
        self.layers, self.channels, self.options = nn.ModuleList(layers), channels, options

    def loss(self, measured: list[tuple], padding: Padding) -> Tensor:
        """The loss of what `measured` gives for each layer."""
        raise NotImplementedError

    def on_one_grid(self, layer: nn.Module, s: Tensor, t: Tensor, padding: Padding) -> tuple[Tensor, Tensor]:
        """What the layer gets of a pair: both on the smaller size of each axis."""
        return on_one_grid(s, t, padding, zeroed=False)

    def measured(self, layer: nn.Module, s: Tensor, t: Tensor, padding: Padding) -> tuple:
        """What the loss wants of a pair; `s` has the dtype of the layer's parameters, and zero in padded frames."""
        raise NotImplementedError

    def forward(
        self,
        student_features: Features,
        teacher_features: Features,
        *,
        lengths: Tensor | None = None,
        padded_length: int | None = None,
    ) -> Tensor:
        """The loss of these features; arguments as in the functional form."""
        found, padding = pairs(student_features, teacher_features, lengths, padded_length, zeroed=False)
        if len(found) != len(self.layers):
            raise ValueError(f"student_features: expected {len(self.layers)} features, one per layer, got {len(found)}")
        made = []
        for index, (layer, pair, channels) in enumerate(zip(self.layers, found, self.channels, strict=True)):
            check_equal(index, "number of axes", pair[0].dim(), pair[1].dim())
            for name, x, expected in zip(("student_features", "teacher_features"), pair, channels, strict=True):
                if x.shape[1] != expected:
                    raise ValueError(
                        f"{name}[{index}]: expected {expected} channels, got {x.shape[1]} in {tuple(x.shape)}"
                    )
            with without_autocast(pair[0]):
                s, t = self.on_one_grid(layer, *pair, padding)
                # Once for all that reads it: in half precision its gradient is then rounded once.
                s = padding.zeroed(s.to(accumulation_dtype(next(layer.parameters(), s).dtype)))
                made.append(self.measured(layer, s, t, padding))
        return self.loss(made, padding)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
