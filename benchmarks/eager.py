"""What a user would write instead: the same losses in plain PyTorch, as torch.compile gets them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def abc_loss(student_features: list[Tensor], teacher_features: list[Tensor], temperature: float = 0.1) -> Tensor:
    """ABC-KD for features of equal spatial size, parameter-free."""
    student, teacher = (
        torch.stack([F.normalize(x.pow(2).mean(1).flatten(1), dim=1) for x in features], 1)
        for features in (student_features, teacher_features)
    )
    attention = (student @ teacher.transpose(1, 2) / temperature).softmax(-1)
    return (student - attention @ teacher).square().sum(-1).mean()


def tap(features: list[Tensor]) -> Tensor:
    """Sum of all attention maps and channel means: something to differentiate."""
    return sum(x.pow(2).mean(1).sum() + x.flatten(2).mean(2).sum() for x in features)


def compress(student_maps: list[Tensor], teacher_maps: list[Tensor]) -> Tensor:
    """Sum of the distances for maps of one size."""
    student, teacher = (
        torch.stack([F.normalize(x.flatten(1), dim=1) for x in maps], 1) for maps in (student_maps, teacher_maps)
    )
    attention = (student @ teacher.transpose(1, 2) / 0.1).softmax(-1)
    return (student - attention @ teacher).square().sum()
