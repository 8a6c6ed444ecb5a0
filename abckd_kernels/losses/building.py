"""A ready loss from its name and example features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .common.checks import listed
from .common.features import check_pairs
from .entries import entry_of

Features = Tensor | Sequence[Tensor]


def build(name: str, student_features: Features = (), teacher_features: Features = (), **options) -> nn.Module:
    """The module of a loss, fit for features like these.

    name               of `table()`.
    student_features   a feature or a list, (B, C, *spatial) as the loss will get them; channels and spatial axes are
                       read from them. Their values do not matter, and tensors on the meta device will do. Losses
                       between outputs (`Entry.inputs` other than "features") need none.
    teacher_features   the teacher's.
    options            of the loss (`Entry.options()`), and `margins` or `group` where `Entry.needs` names them.

    Raises TypeError or ValueError that names the argument or the option.
    """
    entry = entry_of(name)
    needs, known = entry.needs, entry.options()
    allowed = [*known, *(["margins"] if needs.margins else []), *(["group"] if needs.group else [])]
    for option in options:
        if option not in allowed:
            raise TypeError(f"{name}: unexpected option {option!r}; it has {', '.join(allowed) or 'none'}")
    if entry.inputs != "features" or not (needs.channels or needs.layers == "chain"):
        return entry.module(**options)
    students, teachers = listed("student_features", student_features), listed("teacher_features", teacher_features)
    if needs.layers != "any":
        check_pairs(len(students), len(teachers))
    if needs.layers == "chain" and len(students) < 2:
        raise ValueError(f"student_features: {name} compares consecutive layers, expected at least 2, got 1")
    if needs.spatial_axes:
        options.setdefault("spatial_axes", students[0].dim() - 2)
    channels = [[x.shape[1] for x in features] for features in (students, teachers)]
    if needs.channels == "pair":
        return Pairs([entry.module(*pair, **options) for pair in zip(*channels, strict=True)])
    if needs.channels == "layers":
        return entry.module(*channels, **options)
    return entry.module(**options)


class Pairs(nn.Module):
    """The mean over pairs of layers of losses whose learned parts are for one pair each."""

    def __init__(self, losses: Sequence[nn.Module]):
        super().__init__()
        self.losses = nn.ModuleList(losses)

    def forward(self, student_features: Features, teacher_features: Features, **padding: Any) -> Tensor:
        """The loss of a feature of both networks for each of the losses, or of lists of them."""
        students, teachers = listed("student_features", student_features), listed("teacher_features", teacher_features)
        for argument, features in (("student_features", students), ("teacher_features", teachers)):
            if len(features) != len(self.losses):
                raise ValueError(f"{argument}: expected {len(self.losses)} features, got {len(features)}")
        pairs = zip(self.losses, students, teachers, strict=True)
        return torch.stack([loss(s, t, **padding) for loss, s, t in pairs]).mean()
