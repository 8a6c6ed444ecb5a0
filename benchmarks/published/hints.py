"""Pointwise hints as published, in eager PyTorch: what users replace, and what torch.compile is given."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from abckd_kernels.losses import hints

from . import Case


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """RepDistiller."""
    return functional.mse_loss(student, teacher)


def ab(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    """torchdistill, but for its sum over elements."""
    on, off = (student < margin) & (teacher > 0), (student > -margin) & (teacher <= 0)
    return ((student - margin) ** 2 * on.float() + (student + margin) ** 2 * off.float()).mean()


def ofd(student: Tensor, teacher: Tensor, margins: Tensor) -> Tensor:
    """mdistiller, but for its sum over elements."""
    teacher = torch.max(teacher, margins.view(1, -1, 1, 1))
    loss = functional.mse_loss(student, teacher, reduction="none")
    return (loss * ((student > teacher) | (teacher > 0)).float()).mean()


def review(student: Tensor, teacher: Tensor) -> Tensor:
    """The hierarchical context loss of ReviewKD, mdistiller and torchdistill."""
    loss, weight, total = functional.mse_loss(student, teacher), 1.0, 1.0
    for level in (4, 2, 1):
        if level < student.shape[2]:
            weight /= 2
            pooled = (functional.adaptive_avg_pool2d(x, level) for x in (student, teacher))
            loss, total = loss + weight * functional.mse_loss(*pooled), total + weight
    return loss / total


def ft(student: Tensor, teacher: Tensor) -> Tensor:
    """RepDistiller, of factors."""
    maps = (functional.normalize(x.pow(2).mean(1).flatten(1)) for x in (student, teacher))
    return functional.l1_loss(*maps)


def cwd(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """mmrazor's ChannelWiseDivergence."""
    log_q, log_p = (functional.log_softmax(x.flatten(2) / temperature, dim=2) for x in (student, teacher.detach()))
    return (log_p.exp() * (log_p - log_q)).sum() * temperature**2 / (student.shape[0] * student.shape[1])


def pkd(student: Tensor, teacher: Tensor) -> Tensor:
    """mmrazor's PKDLoss, but for the 1e-6 that it adds to standard deviations."""

    def normalized(x):
        rows = x.transpose(0, 1).flatten(1)
        return (rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True)

    return functional.mse_loss(normalized(student), normalized(teacher.detach())) / 2


def pad(student: Tensor, teacher: Tensor, log_variances: Tensor, eps: float = 1e-6) -> Tensor:
    """torchdistill."""
    return torch.mean((teacher - student) ** 2 / (eps + torch.exp(log_variances)) + log_variances)


def srd(student: Tensor, teacher: Tensor, exponent: float = 4.0) -> Tensor:
    """torchdistill, without the divergence of logits."""
    return torch.log((student - teacher).abs().pow(exponent).sum())


def vid(student: Tensor, teacher: Tensor, scales: Tensor, eps: float = 1e-5) -> Tensor:
    """RepDistiller, of regressed features."""
    variance = (torch.log(1 + torch.exp(scales)) + eps).view(1, -1, 1, 1)
    return (0.5 * ((student - teacher) ** 2 / variance + torch.log(variance))).mean()


def _convolution(inputs: int, outputs: int, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=1, bias=bias)


class AB(nn.Module):
    def __init__(self, student_channels: int, teacher_channels: int):
        super().__init__()
        self.connector = nn.Sequential(
            _convolution(student_channels, teacher_channels, bias=True), nn.BatchNorm2d(teacher_channels)
        )

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return ab(self.connector(student), teacher)


class OFD(nn.Module):
    def __init__(self, student_channels: int, teacher_channels: int):
        super().__init__()
        self.connector = nn.Sequential(
            _convolution(student_channels, teacher_channels), nn.BatchNorm2d(teacher_channels)
        )
        self.register_buffer("margins", torch.full((teacher_channels,), -3.0))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return ofd(self.connector(student), teacher, self.margins)


class VID(nn.Module):
    def __init__(self, student_channels: int, teacher_channels: int, initial_variance: float = 5.0):
        super().__init__()
        self.regressor = nn.Sequential(
            _convolution(student_channels, teacher_channels),
            nn.ReLU(),
            _convolution(teacher_channels, teacher_channels),
            nn.ReLU(),
            _convolution(teacher_channels, teacher_channels),
        )
        self.scale = nn.Parameter(torch.full((teacher_channels,), math.log(math.expm1(initial_variance - 1e-5))))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return vid(self.regressor(student), teacher, self.scale)


class PAD(nn.Module):
    """torchdistill's variance branch at every position, and a projection of the channels."""

    def __init__(self, student_channels: int, teacher_channels: int):
        super().__init__()
        self.projection = _convolution(student_channels, teacher_channels, bias=True)
        self.variance = nn.Sequential(
            _convolution(student_channels, teacher_channels, bias=True), nn.BatchNorm2d(teacher_channels)
        )

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return pad(self.projection(student), teacher, self.variance(student))


class SRD(nn.Module):
    def __init__(self, student_channels: int, teacher_channels: int):
        super().__init__()
        self.projector = _convolution(student_channels, teacher_channels)
        self.student_norm, self.teacher_norm = (nn.BatchNorm2d(teacher_channels, affine=False) for _ in range(2))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return srd(self.student_norm(self.projector(student)), self.teacher_norm(teacher))


def _between(form: type[nn.Module]):
    """Makes the form for the channels of student and teacher."""
    return lambda student, teacher: form(student.shape[1], teacher.shape[1])


def _equal(student, teacher):
    return teacher, teacher


CASES = {
    "hint": Case(hint, _equal, note="of equal channels"),
    "review": Case(review, _equal, convention={"fit": "frames"}, note="of equal channels"),
    "cwd": Case(cwd, _equal, note="of equal channels"),
    "pkd": Case(pkd, _equal, convention={"convention": "published"}, note="of equal channels"),
    "ab": Case(_between(AB), ours=_between(hints.ABLoss), convention=None),
    "ofd": Case(_between(OFD), ours=_between(hints.OFDLoss), convention=None),
    "vid": Case(_between(VID), ours=_between(hints.VIDLoss), convention=None),
    "pad": Case(_between(PAD), ours=_between(hints.PADLoss), convention=None),
    "srd": Case(_between(SRD), ours=_between(hints.SRDLoss), convention=None),
}
