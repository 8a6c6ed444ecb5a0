"""Relational losses as published code writes them, in plain PyTorch, to be compiled and measured against.

Where that code builds what no machine holds at the size of speech features (N x N affinities, B x C x C' x N products,
B x B x D differences), this is the better form of it: matrix products.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def sp(student: Tensor, teacher: Tensor) -> Tensor:
    def rows(x):
        x = x.flatten(1)
        return functional.normalize(x @ x.T)

    return (rows(teacher) - rows(student)).square().sum() / len(student) ** 2


def pkt(student: Tensor, teacher: Tensor) -> Tensor:
    eps = 1e-7

    def rows(x):
        x = x.flatten(1)
        x = x / (x.norm(dim=1, keepdim=True) + eps)
        x = torch.where(x != x, 0, x)
        k = (x @ x.T + 1) / 2
        return k / k.sum(1, keepdim=True)

    p, q = rows(student), rows(teacher)
    return (q * ((q + eps) / (p + eps)).log()).mean()


def hkd(student: Tensor, teacher: Tensor) -> Tensor:
    eps = 1e-6

    def kernels(x):
        x = x.flatten(1)
        unit = x / (x.norm(dim=1, keepdim=True) + eps)
        squares = x.square().sum(1)
        distance = ((squares[:, None] + squares - 2 * x @ x.T).clamp_min(0) + eps).sqrt()
        return [k / k.sum(1, keepdim=True) for k in ((unit @ unit.T + 1) / 2, 1 / (1 + distance))]

    return sum(((q - p) * (q.log() - p.log())).mean() for p, q in zip(kernels(student), kernels(teacher), strict=True))


def rkd(student: Tensor, teacher: Tensor) -> Tensor:
    def relations(x):
        x = x.flatten(1)
        squares = x.square().sum(1)
        g = x @ x.T
        distance = (squares[:, None] + squares - 2 * g).clamp_min(1e-12).sqrt() * (1 - torch.eye(len(x)))
        dots = g - g[:, :, None] - g[:, None, :] + g.diagonal()[:, None, None]
        norm = distance.clamp_min(1e-12)
        count = len(x) * (len(x) - 1)
        return distance / (distance.sum() / count), dots / norm[:, :, None] / norm[:, None, :]

    distances, angles = zip(relations(student), relations(teacher), strict=True)
    return 25 * functional.smooth_l1_loss(*distances) + 50 * functional.smooth_l1_loss(*angles)


def irg(student: Tensor, teacher: Tensor) -> Tensor:
    def edges(x):
        x = x.flatten(1)
        squares = x.square().sum(1)
        distance = (squares[:, None] + squares - 2 * x @ x.T).clamp_min(1e-12)
        return distance / (distance.max() + 1e-12)

    return functional.mse_loss(edges(student), edges(teacher))


def cc(student: Tensor, teacher: Tensor) -> Tensor:
    def kernel(x):
        x = functional.normalize(x.flatten(1))
        g = 0.8 * x @ x.T
        return torch.exp(torch.tensor(-0.8)) * (1 + g + g.square() / 2)

    return (kernel(student) - kernel(teacher)).square().sum() / len(student) ** 2


def nst(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = (functional.normalize(x.flatten(2), dim=2) for x in (student, teacher))

    def mean(x, y):
        return torch.bmm(x, y.mT).square().mean()

    return mean(t, t) + mean(s, s) - 2 * mean(s, t)


def fsp(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    def flow(x, y):
        size = [min(sizes) for sizes in zip(x.shape[2:], y.shape[2:], strict=True)]
        x, y = (functional.adaptive_avg_pool2d(a, size).flatten(2) for a in (x, y))
        return torch.bmm(x, y.mT) / x.shape[2]

    losses = [
        (flow(*student[i : i + 2]) - flow(*teacher[i : i + 2])).square().sum((1, 2)).mean()
        for i in range(len(student) - 1)
    ]
    return torch.stack(losses).mean()


def ickd(student: Tensor, teacher: Tensor) -> Tensor:
    def rows(x):
        x = x.flatten(2)
        return functional.normalize(torch.bmm(x, x.mT), dim=2)

    return (rows(student) - rows(teacher)).square().sum() / student.shape[1] / len(student)


def affinity(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = (functional.normalize(x.flatten(2), dim=2) for x in (student, teacher))
    squares = s.square().sum(2).square() + t.square().sum(2).square() - 2 * (s * t).sum(2).square()
    return (squares.clamp_min(1e-12).sqrt().sum(1) / s.shape[2]).mean()


def time_similarity(student: Tensor, teacher: Tensor) -> Tensor:
    return _jeffreys(*(x.transpose(1, 2).flatten(2) for x in (student, teacher)))


def frame_similarity(student: Tensor, teacher: Tensor) -> Tensor:
    return _jeffreys(*(x.movedim(2, 0).flatten(2) for x in (student, teacher)))


def _jeffreys(student: Tensor, teacher: Tensor) -> Tensor:
    def rows(x):
        x = x / (x.norm(dim=2, keepdim=True) + 1e-6)
        k = (x @ x.mT + 1) / 2
        return k / k.sum(2, keepdim=True)

    p, q = rows(student), rows(teacher)
    return ((q - p) * ((q + 1e-7).log() - (p + 1e-7).log())).sum(2).mean()


def gram(student: Tensor, teacher: Tensor) -> Tensor:
    def rows(x):
        x = x.transpose(1, 2).flatten(2)
        return functional.normalize(torch.bmm(x, x.mT), dim=2)

    return (rows(student) - rows(teacher)).square().sum(2).mean()
