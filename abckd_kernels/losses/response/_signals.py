"""What losses on waveforms and spectra share: pairs of signals, and where they end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...ops import shapes
from ..common.checks import listed
from ..common.features import constant

Signals = Tensor | Sequence[Tensor]


class Ends(NamedTuple):
    """Where the samples of a batch end, on the scale of padded_length; None lengths: nowhere before the others."""

    lengths: Tensor | None
    padded_length: int

    def of(self, x: Tensor) -> Tensor | None:
        """Valid steps (B,) of the last axis of `x`."""
        return None if self.lengths is None else shapes.valid_frames(self.lengths, x.shape[-1], self.padded_length)

    def zeroed(self, x: Tensor) -> Tensor:
        """`x` with zero behind each sample's end, along the last axis, and no gradient there."""
        mask = shapes.frame_mask(self.lengths, x.shape[-1], self.padded_length)
        return x if mask is None else x.masked_fill(~mask.reshape(len(x), *[1] * (x.dim() - 2), -1), 0)


def signal_pairs(
    student: Signals,
    teacher: Signals,
    lengths: Tensor | None,
    padded_length: int | None,
    check: Callable[[Tensor, str], torch.Size],
) -> tuple[list[tuple[Tensor, Tensor]], Ends]:
    """[(student, teacher), ...], checked, the teacher's detached; and where samples end.

    check   raises TypeError or ValueError for what is no signal; returns the shape of one, frames or samples last.

    Raises TypeError or ValueError that names the argument.
    """
    signals = {}
    for name, given in (("student", student), ("teacher", teacher)):
        one = isinstance(given, Tensor)
        signals[name] = [(x, name if one else f"{name}[{i}]") for i, x in enumerate(listed(name, given))]
    if len(signals["student"]) != len(signals["teacher"]):
        raise ValueError(
            f"teacher: expected {len(signals['student'])} signals, one per student's, got {len(signals['teacher'])}"
        )
    found, steps = [], []
    first: tuple[int, torch.device, str] | None = None
    for (s, own), (t, name) in zip(signals["student"], signals["teacher"], strict=True):
        shape = check(s, own)
        same("shape", tuple(shape), own, tuple(check(t, name)), name)
        first = first or (shape[0], s.device, own)
        same("batch size", first[0], first[2], shape[0], own)
        for x, its in ((s, own), (t, name)):
            same("device", first[1], first[2], x.device, its)
        found.append((s, constant(t)))
        steps.append(shape[-1])
    padded_length = shapes.check_padded_length(max(steps) if padded_length is None else padded_length)
    first_signal = found[0][0]
    return found, Ends(shapes.check_lengths(lengths, first_signal.shape[0], first_signal.device), padded_length)


def same(what: str, expected, owner: str, got, name: str) -> None:
    """Raise ValueError unless `got`, a property of `name`, is the `expected` one that `owner` has."""
    if got != expected:
        raise ValueError(f"{name}: expected {what} {expected} as {owner} has, got {got}")


def check_waveform(x: Tensor, name: str) -> torch.Size:
    """The shape of a waveform (B, samples) or (B, C, samples). Raises TypeError or ValueError, naming the argument."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a waveform (B, samples), got {type(x).__name__}")
    if x.dtype not in shapes.FEATURE_DTYPES or x.layout != torch.strided:
        raise TypeError(
            f"{name}: expected dense float32, float64, bfloat16 or float16, got {x.dtype} in layout {x.layout}"
        )
    if x.dim() not in (2, 3) or 0 in x.shape[1:]:
        raise ValueError(f"{name}: expected (B, samples) or (B, C, samples), got shape {tuple(x.shape)}")
    return x.shape
