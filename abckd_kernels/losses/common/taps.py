"""What losses share that need nothing of a feature but its attention map and channel means (`ops.tap`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

from torch import Tensor, nn

from ...ops import compress, shapes, tap_all
from .features import Padding, checked

__all__ = ["Attending", "TapOptions", "Taps", "cells", "distances", "padding_of", "tapped"]


class Taps(NamedTuple):
    """Attention maps (B, *spatial) and channel means (B, C) of one network's layers; no means: an empty list."""

    maps: list[Tensor]
    means: list[Tensor]


class TapOptions(TypedDict):
    """What of `ops.tap` a loss needs: the power of the maps, and whether means are taken, too."""

    power: int
    means: bool


def tapped(
    students: Sequence[Tensor], teachers: Sequence[Tensor], padding: Padding, *, power: int = 2, means: bool = True
) -> tuple[Taps, Taps]:
    """The taps of the student's and of the teacher's features, from one call for all of them."""
    n = len(students)
    _, maps, channel_means = tap_all([*students, *teachers], power=power, means=means, **padding._asdict())
    return Taps(maps[:n], channel_means[:n]), Taps(maps[n:], channel_means[n:])


class Attending(nn.Module):
    """A loss of attention maps and channel means, with an attention over the layers of one network.

    Subclasses set `tap_options`, and have `from_taps`.
    """

    tap_options: TapOptions

    def from_taps(
        self, student: Taps, teacher: Taps, *, lengths: Tensor | None = None, padded_length: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Loss and attention of (maps, channel means) that `tap` took with `tap_options` from both networks' layers."""
        raise NotImplementedError

    def forward(
        self,
        student_features: Tensor | Sequence[Tensor],
        teacher_features: Tensor | Sequence[Tensor],
        *,
        lengths: Tensor | None = None,
        padded_length: int | None = None,
        return_attention: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The loss of features in the order of the channels given at construction; (loss, attention) if asked for."""
        students, teachers, padding = checked(student_features, teacher_features, lengths, padded_length, axes=True)
        taps = tapped(students, teachers, padding, **self.tap_options)
        loss, attention = self.from_taps(*taps, **padding._asdict())
        return (loss, attention) if return_attention else loss


def padding_of(taps: Sequence[Taps], lengths: Tensor | None, padded_length: int | None) -> Padding:
    """The padding of features of which only the taps are left; `padded_length` defaults to T of the largest map."""
    maps = [x for group in taps for x in group[0]]
    lengths = shapes.check_lengths(lengths, maps[0].shape[0], maps[0].device)
    padded_length = max(x.shape[1] for x in maps) if padded_length is None else padded_length
    return Padding(lengths, shapes.check_padded_length(padded_length))


def distances(students: Sequence[Tensor], teacher: Tensor, grid: Sequence[int], padding: Padding) -> Tensor:
    """||a_i - a||^2, (B, n), of n maps and one, pooled to `grid` and scaled to norm 1; in [0, 2] of maps >= 0.

    It is compression with a single teacher map, to which any attention is 1.
    """
    return compress(students, [teacher], grid=tuple(grid), **padding._asdict())[0]


def cells(grid: Sequence[int], padding: Padding) -> Tensor | int:
    """Valid positions of each sample on a grid, (B,), at least 1; a number where all are."""
    others = grid[1] if len(grid) > 1 else 1
    if padding.lengths is None:
        return grid[0] * others
    return shapes.valid_frames(padding.lengths, grid[0], padding.padded_length).clamp_min(1) * others
