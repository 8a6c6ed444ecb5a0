"""Relational losses as published, eager: what they form, B x B x D included, is what published code forms."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from . import Case


def sp(student: Tensor, teacher: Tensor) -> Tensor:
    """RepDistiller, mdistiller, SemCKD."""
    rows = [x.flatten(1) for x in (student, teacher)]
    r = [F.normalize(x @ x.t()) for x in rows]
    return (r[1] - r[0]).pow(2).sum() / len(student) ** 2


def _cosine_kernel(x: Tensor, eps: float) -> Tensor:
    x = x.flatten(1)
    x = x / (x.norm(dim=1, keepdim=True) + eps)
    x = torch.where(x.isnan(), 0, x)
    k = (x @ x.t() + 1) / 2
    return k / k.sum(1, keepdim=True)


def pkt(student: Tensor, teacher: Tensor, eps: float = 1e-7) -> Tensor:
    """RepDistiller, mdistiller, torchdistill, SemCKD."""
    p, q = (_cosine_kernel(x, eps) for x in (student, teacher))
    return (q * ((q + eps) / (p + eps)).log()).mean()


def _squared_distances(x: Tensor) -> Tensor:
    squares = x.pow(2).sum(1)
    return (squares[:, None] + squares[None] - 2 * x @ x.t()).clamp(min=0)


def hkd(student: Tensor, teacher: Tensor) -> Tensor:
    """SemCKD."""
    total = 0
    angular = [_cosine_kernel(x, 1e-6) for x in (student, teacher)]
    heavy = [1 / (1 + (_squared_distances(x.flatten(1)) + 1e-6).sqrt()) for x in (student, teacher)]
    for p, q in (angular, [k / k.sum(1, keepdim=True) for k in heavy]):
        total = total + ((q - p) * (q.log() - p.log())).mean()
    return total


def rkd(student: Tensor, teacher: Tensor) -> Tensor:
    """RepDistiller, mdistiller, torchdistill, SemCKD."""

    def distances(x):
        d = _squared_distances(x).clamp(min=1e-12).sqrt()
        d = d * (1 - torch.eye(len(d), dtype=d.dtype, device=d.device))
        return d / d[d > 0].mean()

    def angles(x):
        e = F.normalize(x[None] - x[:, None], dim=2)
        return torch.bmm(e, e.transpose(1, 2)).view(-1)

    s = student.flatten(1)
    with torch.no_grad():
        t = teacher.flatten(1)
        t_distances, t_angles = distances(t), angles(t)
    return 25 * F.smooth_l1_loss(distances(s), t_distances) + 50 * F.smooth_l1_loss(angles(s), t_angles)


def irg(student: Tensor, teacher: Tensor) -> Tensor:
    """SemCKD, one layer, edges."""
    d = [_squared_distances(x.flatten(1)) for x in (student, teacher)]
    d = [x * (1 - torch.eye(len(x), dtype=x.dtype, device=x.device)) for x in d]
    return F.mse_loss(*(x / (x.max() + 1e-12) for x in d))


def cc(student: Tensor, teacher: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    """torchdistill, Gaussian kernel."""

    def kernel(x):
        g = x.flatten(1) @ x.flatten(1).t()
        terms = [(2 * gamma) ** p / math.factorial(p) * g.pow(p) for p in range(order + 1)]
        return math.exp(-2 * gamma) * sum(terms)

    return (kernel(student) - kernel(teacher)).norm() / len(student) ** 2


def nst(student: Tensor, teacher: Tensor) -> Tensor:
    """RepDistiller, mdistiller: B x C x C' x N."""
    s, t = (F.normalize(x.flatten(2), dim=2) for x in (student, teacher))

    def poly(a, b):
        return (a[:, :, None] * b[:, None]).sum(-1).pow(2)

    return poly(t, t).mean().detach() + poly(s, s).mean() - 2 * poly(s, t).mean()


def fsp(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """RepDistiller: B x C_i x C_(i+1) x N."""

    def flows(features):
        pairs = [(x.flatten(2), y.flatten(2)) for x, y in zip(features, features[1:], strict=False)]
        return [(x[:, :, None] * y[:, None]).mean(-1) for x, y in pairs]

    return sum(F.mse_loss(*pair) for pair in zip(flows(student), flows(teacher), strict=True))


def ickd(student: Tensor, teacher: Tensor) -> Tensor:
    """torchdistill's ChSimLoss."""
    batch, channels = student.shape[:2]
    rows = [x.flatten(2) for x in (student, teacher)]
    r = [F.normalize(torch.bmm(x, x.transpose(1, 2)), dim=2) for x in rows]
    return (r[0] - r[1]).pow(2).sum() / channels / batch**2


def affinity(student: Tensor, teacher: Tensor) -> Tensor:
    """torchdistill: N x N for each channel."""
    u = [x.flatten(2) / x.flatten(2).norm(dim=2, keepdim=True) for x in (student, teacher)]
    a = [x[..., :, None] * x[..., None, :] for x in u]
    return ((a[0] - a[1]).flatten(2).norm(dim=2) / u[0].shape[2]).sum(1).mean()


def _similarity(x: Tensor) -> Tensor:
    x = x / (x.norm(dim=2, keepdim=True) + 1e-6)
    k = (torch.bmm(x, x.transpose(1, 2)) + 1) / 2
    return k / k.sum(2, keepdim=True)


def time_similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """I2RF-TFCKD, 'time', one pair of layers without its attention."""
    p, q = (_similarity(x.transpose(1, 2).flatten(2)) for x in (student, teacher))
    return ((q - p) * (q.log() - p.log())).sum(1).mean()


def frame_similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """I2RF-TFCKD, 'freq', one pair of layers without its attention."""
    p, q = (_similarity(x.movedim(2, 0).flatten(2)) for x in (student, teacher))
    return ((q - p) * (q.log() - p.log())).sum(0).mean()


def gram(student: Tensor, teacher: Tensor) -> Tensor:
    """No code was published: the definition."""
    rows = [x.transpose(1, 2).flatten(2) for x in (student, teacher)]
    r = [F.normalize(torch.bmm(x, x.transpose(1, 2)), dim=2) for x in rows]
    return (r[0] - r[1]).pow(2).sum(2).mean()


def _frame_similarity_per_frame(student: Tensor, teacher: Tensor) -> Tensor:
    """Divided by the number of frames, as ours is, where the published form divides by that of samples."""
    return frame_similarity(student, teacher) * (student.shape[0] / student.shape[2])


def _of_50_frames(student, teacher):
    return ([(*student[:2], 50, student[3])] * 2,) * 2


def _alone(student, teacher):
    return (1, *student[1:]), (1, *teacher[1:])


PUBLISHED = {"convention": "published"}
CASES = {
    "pkt": Case(pkt, convention=PUBLISHED),
    "hkd": Case(hkd, convention=PUBLISHED | {"eps": 0.0}),
    "rkd": Case(rkd, convention=PUBLISHED),
    "cc": Case(cc, convention={"normalize": False, "squared": False}),
    "nst": Case(nst, _alone, note="batch 1: the published form has temporaries of 1.6 GB at 8"),
    "fsp": Case(fsp, _of_50_frames, convention={"distance": "mean"},
                note="two layers of 50 frames: the published form takes 0.4 GB per temporary at 200"),
    "ickd": Case(ickd, lambda student, teacher: (teacher, teacher), convention={"convention": "published"},
                 note="equal channels"),
    "affinity": Case(affinity, lambda student, teacher: ((2, 4, 10, 32),) * 2,
                     note="a map of 10 x 32: the published form has a matrix of the squared number of positions"),
    "time_similarity": Case(time_similarity, convention={"norm_eps": 1e-6, "eps": 0.0}),
    "frame_similarity": Case(_frame_similarity_per_frame, convention={"norm_eps": 1e-6, "eps": 0.0}),
}  # fmt: skip
