"""Attention-map losses and cross-layer losses with learned parts as published, eager."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abckd_kernels.losses import AFDLoss, ATLoss, SemCKDLoss

from . import Case, channels, layers


def _attention_map(x: Tensor) -> Tensor:
    return F.normalize(x.pow(2).mean(1).flatten(1))


def at(student: Tensor, teacher: Tensor) -> Tensor:
    """RepDistiller, mdistiller; torchdistill's "code"."""
    return (_attention_map(student) - _attention_map(teacher)).pow(2).mean()


class _Normalised(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.linear, self.bn = nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.linear(x))


class AFD(nn.Module):
    """clovaai/attention-feature-distillation, the maps of the student made once per size of the teacher's."""

    def __init__(self, student_channels: list[int], teacher_channels: list[int], dim: int = 64):
        super().__init__()
        n, m = len(student_channels), len(teacher_channels)
        self.keys = nn.ModuleList(_Normalised(channels, dim) for channels in student_channels)
        self.bilinear = _Normalised(dim, dim * m)
        self.queries = nn.ModuleList(_Normalised(channels, dim) for channels in teacher_channels)
        self.p_s, self.p_t = (nn.Parameter(torch.randn(count, dim) / dim**0.5) for count in (n, m))

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        n, m, dim = len(student), len(teacher), self.p_s.shape[1]
        key = torch.stack([F.relu(f(x.mean((2, 3)))) for f, x in zip(self.keys, student, strict=True)], 1)
        key = self.bilinear(key.view(-1, dim)).view(-1, n, m, dim)
        query = torch.stack([f(x.mean((2, 3))) for f, x in zip(self.queries, teacher, strict=True)], 1)
        logits = torch.einsum("bstq,btq->bts", key, query) + self.p_t @ self.p_s.t()
        attention = F.softmax(logits / dim**0.5, dim=2)
        pooled = {}
        for x in teacher:
            size = x.shape[2:]
            if size not in pooled:
                maps = [F.adaptive_avg_pool2d(s.pow(2).mean(1, keepdim=True), size).flatten(1) for s in student]
                pooled[size] = torch.stack([F.normalize(v) for v in maps], 1)
        loss = 0
        for j, x in enumerate(teacher):
            difference = (pooled[x.shape[2:]] - _attention_map(x)[:, None]).pow(2).mean(2)
            loss = loss + (difference * attention[:, j]).sum(1).mean()
        return loss


class _Embedding(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(inputs, 2 * outputs), nn.Linear(2 * outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear2(F.relu(self.linear1(x)))
        return x / x.pow(2).sum(1, keepdim=True).sqrt()


class SemCKD(nn.Module):
    """SemCKD, pooled to both true sizes instead of to a square of frames."""

    def __init__(self, student_channels: list[int], teacher_channels: list[int], batch: int):
        super().__init__()
        self.queries = nn.ModuleList(_Embedding(batch, batch // 4) for _ in student_channels)
        self.keys = nn.ModuleList(_Embedding(batch, batch // 4) for _ in teacher_channels)
        self.regressors = nn.ModuleList(
            nn.ModuleList(self._regressor(s, t) for t in teacher_channels) for s in student_channels
        )

    @staticmethod
    def _regressor(inputs: int, outputs: int) -> nn.Sequential:
        width = 2 * outputs
        return nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, outputs, 1, bias=False),
        )  # fmt: skip

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        grams = [[x.flatten(1) @ x.flatten(1).t() for x in features] for features in (student, teacher)]
        queries = torch.stack([f(g) for f, g in zip(self.queries, grams[0], strict=True)], 1)
        keys = torch.stack([f(g) for f, g in zip(self.keys, grams[1], strict=True)], 1)
        attention = F.softmax(torch.bmm(queries, keys.transpose(1, 2)), dim=2)
        loss = 0
        for i, s in enumerate(student):
            for j, t in enumerate(teacher):
                size = [min(pair) for pair in zip(s.shape[2:], t.shape[2:], strict=True)]
                error = self.regressors[i][j](F.adaptive_avg_pool2d(s, size)) - F.adaptive_avg_pool2d(t, size)
                loss = loss + (attention[:, i, j] * error.pow(2).mean((1, 2, 3))).sum()
        return loss / (len(student[0]) * len(student))


def _afd(student: list[Tensor], teacher: list[Tensor]) -> AFDLoss:
    return AFDLoss(*channels(student, teacher))


def _short(student, teacher):
    return [(*student[:2], 50, student[3])], [(*teacher[:2], 50, teacher[3])] * 2


CASES = {
    "at": Case(at, convention={"distance": "mean"}, tapped=lambda student, teacher: ATLoss()),
    "afd": Case(lambda student, teacher: AFD(*channels(student, teacher)), layers(3, 6), ours=_afd, tapped=_afd,
                convention=None, note="3 student and 6 teacher layers"),
    "semckd": Case(lambda student, teacher: SemCKD(*channels(student, teacher), len(student[0])), _short,
                   ours=lambda student, teacher: SemCKDLoss(*channels(student, teacher), len(student[0]) // 4,
                                                            regressor="convolutions", batch_size=len(student[0])),
                   convention=None,
                   note="1 student and 2 teacher layers of 50 frames, both with the published regressors"),
}  # fmt: skip
