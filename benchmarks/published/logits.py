"""Losses on logits as published code has them, in plain PyTorch; written from their formulas."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from . import Case


def kl(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """mdistiller's kd_loss, mean over rows."""
    log_q = functional.log_softmax(student / temperature, dim=1)
    p = functional.softmax(teacher.detach() / temperature, dim=1)
    return functional.kl_div(log_q, p, reduction="none").sum(1).mean() * temperature**2


def jsd(student: Tensor, teacher: Tensor, beta: float = 0.5, temperature: float = 1.0) -> Tensor:
    """Liger-Kernel's and TRL's generalised Jensen-Shannon divergence, mean over rows."""
    log_q = functional.log_softmax(student / temperature, dim=1)
    log_p = functional.log_softmax(teacher.detach() / temperature, dim=1)
    log_m = torch.log(beta * log_p.exp() + (1 - beta) * log_q.exp())
    to_teacher = functional.kl_div(log_m, log_p, reduction="none", log_target=True).sum(1)
    to_student = functional.kl_div(log_m, log_q, reduction="none", log_target=True).sum(1)
    return (beta * to_teacher + (1 - beta) * to_student).mean() * temperature**2


def dkd(
    student: Tensor, teacher: Tensor, labels: Tensor, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0
) -> Tensor:
    """mdistiller's dkd_loss, mean over rows."""
    teacher = teacher.detach()
    target = torch.zeros_like(student).scatter_(1, labels.unsqueeze(1), 1).bool()
    q, p = (functional.softmax(x / temperature, dim=1) for x in (student, teacher))

    def binary(x):
        return torch.stack([(x * target).sum(1), (x * ~target).sum(1)], 1)

    tckd = functional.kl_div(torch.log(binary(q)), binary(p), reduction="none").sum(1).mean() * temperature**2
    log_q = functional.log_softmax(student / temperature - 1000.0 * target, dim=1)
    p = functional.softmax(teacher / temperature - 1000.0 * target, dim=1)
    nckd = functional.kl_div(log_q, p, reduction="none").sum(1).mean() * temperature**2
    return alpha * tckd + beta * nckd


def dist(student: Tensor, teacher: Tensor, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0) -> Tensor:
    """torchdistill's DISTLoss of rows (N, K)."""
    q, p = ((x / temperature).softmax(1).movedim(1, -1).flatten(0, -2) for x in (student, teacher.detach()))

    def correlation(x, y):
        x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
        return functional.cosine_similarity(x, y, dim=1, eps=1e-8)

    inter, intra = 1 - correlation(q, p).mean(), 1 - correlation(q.T, p.T).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def linear_divergence(
    student: Tensor, teacher: Tensor, student_weight: Tensor, teacher_weight: Tensor, temperature: float = 1.0
) -> Tensor:  # fmt: skip
    """kl of the logits of hidden states, all of them at once."""
    logits = functional.linear(student, student_weight), functional.linear(teacher.detach(), teacher_weight)
    return kl(*logits, temperature=temperature)


def _heads(student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """Output layers over a vocabulary of 32000, over 1000 of few rows; the student's learns."""
    generator = torch.Generator().manual_seed(1)
    classes = 32000 if student.shape[0] >= 512 else 1000

    def head(hidden):
        weight = torch.randn(classes, hidden.shape[-1], generator=generator) / hidden.shape[-1] ** 0.5
        return weight.to(hidden.device, hidden.dtype)

    return {"student_weight": head(student).requires_grad_(), "teacher_weight": head(teacher)}


CASES = {
    "linear_divergence": Case(linear_divergence, extra=_heads, note="heads over 32000 classes"),
    "dkd": Case(dkd, extra=lambda student, teacher: {"labels": teacher.argmax(1)}),
}
