"""project in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shapes import accumulation_dtype, broadcast_mask, empty_like


def forward(
    student: Tensor,
    weight: Tensor,
    teachers: list[Tensor],
    bias: Tensor | None,
    attention: Tensor | None,
    lengths: Tensor | None,
    padded_length: int,
) -> Tensor:
    residual, *_ = _residual(student, weight, teachers, bias, attention, lengths, padded_length)
    return residual.square().sum((1, 2))


def backward(
    grad_errors: Tensor,
    student: Tensor,
    weight: Tensor,
    teachers: list[Tensor],
    bias: Tensor | None,
    attention: Tensor | None,
    lengths: Tensor | None,
    padded_length: int,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    residual, s, w, ts = _residual(student, weight, teachers, bias, attention, lengths, padded_length)
    residual = 2 * grad_errors.to(residual.dtype)[:, None, None] * residual
    student_grad = student.new_empty(0)
    if needed[0]:
        student_grad = empty_like(student).copy_((w.T @ residual).view(student.shape))
    weight_grad = torch.einsum("bdp,bcp->dc", residual, s) if needed[1] else residual.new_empty(0)
    bias_grad = residual.sum((0, 2)) if needed[2] else residual.new_empty(0)
    attention_grad = -torch.stack([(residual * t).sum((1, 2)) for t in ts], 1) if needed[3] else residual.new_empty(0)
    return student_grad, weight_grad, bias_grad, attention_grad


def _residual(student, weight, teachers, bias, attention, lengths, padded_length):
    """r (B, Ct, P); student, weight and teachers as they enter it, positions flat, zero where they don't count."""
    dtype = accumulation_dtype(student.dtype)
    weight, attention = (None if x is None else x.to(dtype) for x in (weight, attention))
    mask = broadcast_mask(student, lengths, padded_length)

    def wide(x: Tensor) -> Tensor:
        x = x.to(dtype)
        if mask is not None:
            x = x.masked_fill(~mask, 0)
        return x.flatten(2)

    s, *ts = map(wide, (student, *teachers))
    residual = weight @ s
    if bias is not None:
        residual = wide((residual + bias.to(dtype)[:, None]).view(len(s), len(weight), *student.shape[2:]))
    for j, t in enumerate(ts):
        residual = residual - (t if attention is None else t * attention[:, j, None, None])
    return residual, s, weight, ts
