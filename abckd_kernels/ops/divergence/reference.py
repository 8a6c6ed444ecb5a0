"""divergence in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shapes import accumulation_dtype
from . import KINDS, numbers

INFINITY = float("inf")


def forward(
    student: Tensor, teacher: Tensor, ignore: Tensor | None, kind: int, beta: float, temperature: float,
    options: Tensor | None, gradients: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    beta, temperature = numbers(beta, temperature, options)
    s, t = (_rows(x) for x in (student, teacher))
    (max_s, lse_s), (max_t, lse_t) = (_normaliser(x, temperature) for x in (s, t))
    dead = (lse_s == -INFINITY) | (lse_t == -INFINITY)
    if ignore is not None:
        dead = dead | ignore.reshape(dead.shape)
    log_q, log_p = ((x - m) / temperature - lse for x, m, lse in ((s, max_s, lse_s), (t, max_t, lse_t)))
    if KINDS[kind] == "kl":
        values = of_student = _divergence(log_p, log_q)
    elif KINDS[kind] == "reverse_kl":
        values = of_student = _divergence(log_q, log_p)
    else:
        log_m = _mixture(log_p, log_q, beta)
        of_student = _divergence(log_q, log_m)
        values = (1 - beta) * of_student + beta * _divergence(log_p, log_m)
        values = values if 0 < beta < 1 else torch.zeros_like(values)
    values = values.clamp_min(0).masked_fill(dead, 0)
    if not gradients:
        return values.flatten(), values.new_empty(0)
    # A row is marked as dead by a sum that is infinite, which no other row can have: both probabilities are then 0.
    saved = [max_s, lse_s.masked_fill(dead, INFINITY), max_t, lse_t.masked_fill(dead, INFINITY)]
    if KINDS[kind] != "kl":
        saved.append(of_student.clamp_min(0).masked_fill(dead, 0))
    return values.flatten(), torch.stack([x.masked_fill(dead & x.isnan(), 0).flatten() for x in saved])


def backward(
    value_grads: Tensor, student: Tensor, teacher: Tensor, saved: Tensor, kind: int, beta: float, temperature: float,
    options: Tensor | None,
) -> Tensor:  # fmt: skip
    beta, temperature = numbers(beta, temperature, options)
    s, t = (_rows(x) for x in (student, teacher))
    max_s, lse_s, max_t, lse_t, *moment = saved.view(len(saved), *s.shape[1:])
    dead = lse_s == INFINITY
    log_q, log_p = ((x - m) / temperature - lse for x, m, lse in ((s, max_s, lse_s), (t, max_t, lse_t)))
    log_q, log_p = (x.masked_fill(dead, -INFINITY) for x in (log_q, log_p))
    q = log_q.exp()
    scale = value_grads.reshape(dead.shape).masked_fill(dead, 0) / temperature
    if KINDS[kind] == "kl":
        grad = q - log_p.exp()
    elif KINDS[kind] == "reverse_kl":
        grad = _times(q, log_q - log_p - moment[0])
    else:
        grad = (1 - beta) * _times(q, log_q - _mixture(log_p, log_q, beta) - moment[0])
        grad = grad if 0 < beta < 1 else torch.zeros_like(grad)
    return (grad * scale).movedim(0, 1).to(student.dtype).contiguous()


def _rows(x: Tensor) -> Tensor:
    """(classes, outer, inner), in the accumulation dtype."""
    return x.movedim(1, 0).to(accumulation_dtype(x.dtype))


def _normaliser(x: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The maximum of each row (0 where all is -inf), and the log of the sum of exp((x - maximum) / temperature)."""
    largest = x.amax(0)
    largest = largest.masked_fill(largest == -INFINITY, 0)
    return largest, ((x - largest) / temperature).exp().sum(0).log()


def _mixture(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """log(beta p + (1 - beta) q)."""
    largest = torch.maximum(log_p, log_q)
    largest = largest.masked_fill(largest == -INFINITY, 0)
    return (beta * (log_p - largest).exp() + (1 - beta) * (log_q - largest).exp()).log() + largest


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """sum_k p log(p / q) over the classes."""
    terms = _times(log_p.exp(), log_p - log_q)
    return terms.masked_fill((log_p > -INFINITY) & (log_q == -INFINITY), INFINITY).sum(0)


def _times(weight: Tensor, x: Tensor) -> Tensor:
    """weight x, 0 where the weight is."""
    return (weight * x).masked_fill(weight == 0, 0)
