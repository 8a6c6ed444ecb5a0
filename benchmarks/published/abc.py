"""ABC-KD, which has no published code, and the two ops that it is made of: their definitions in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from abckd_kernels.losses import ABCLoss

from . import Case, channels, layers


def abc(student_features: list[Tensor], teacher_features: list[Tensor], temperature: float = 0.1) -> Tensor:
    """For features of equal spatial size, parameter-free."""
    maps = ([x.pow(2).mean(1) for x in features] for features in (student_features, teacher_features))
    return _squares(*maps, temperature).sum(-1).mean()


def tap(features: list[Tensor], _: list[Tensor]) -> Tensor:
    """Sum of all attention maps and channel means: something to differentiate."""
    return sum(x.pow(2).mean(1).sum() + x.flatten(2).mean(2).sum() for x in features)


def compress(student_maps: list[Tensor], teacher_maps: list[Tensor]) -> Tensor:
    """Sum of the distances for maps of one size."""
    return _squares(student_maps, teacher_maps, 0.1).sum()


def _squares(student_maps: list[Tensor], teacher_maps: list[Tensor], temperature: float) -> Tensor:
    """Squared differences (B, n, positions) of normalised maps from their compression."""
    student, teacher = (
        torch.stack([F.normalize(x.flatten(1), dim=1) for x in maps], 1) for maps in (student_maps, teacher_maps)
    )
    attention = (student @ teacher.transpose(1, 2) / temperature).softmax(-1)
    return (student - attention @ teacher).square()


def _tapped(student: list[Tensor], teacher: list[Tensor]) -> ABCLoss:
    return ABCLoss(*channels(student, teacher), scores="similarity")


def _maps(student, teacher):
    return [(student[0], *student[2:])] * 3, [(teacher[0], *teacher[2:])] * 6


LAYERS = "3 student and 6 teacher layers"
CASES = {
    "abc": Case(abc, layers(3, 6), tapped=_tapped, note=LAYERS),
    "tap": Case(tap, layers(3, 0), in_network=False, note="3 layers"),
    "compress": Case(compress, _maps, in_network=False, half=False, note="maps of " + LAYERS),
}
