"""The divergence of two output layers without their logits: hidden states and both heads, a few rows at a time.

For N rows and K classes the logits of student and teacher, and what autograd keeps of them, are (N, K) each: of a
language model far more than the model. Here a chunk of rows has its logits computed, compared by the op `divergence`
and turned into the gradients of hidden states, head and bias at once, in the forward pass; backward multiplies by the
gradient that arrives. Matrix products are those of the full logits: two forward, two for gradients.

Memory beyond inputs: three matrices of `chunk` rows of logits, and the gradients, the head's in float32 (float64),
which it is accumulated in. Logits are never rounded: products of half precision are float32. Where only float32 can be
multiplied so (on CPUs), a head in half precision costs a copy in float32.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ... import backends
from ...ops import shapes
from ...ops.contract import connect_refusal
from ...ops.divergence import check_kind
from ..common.features import constant, without_autocast
from ..common.modules import module
from ..common.options import Count, Positive, Share, check_options

LOGITS, ROWS = 2**22, 128  # of a chunk by default, whichever is more: fewer rows would read the heads too often


def linear_divergence_loss(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    student_weight: Tensor,
    teacher_weight: Tensor,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    kind: Literal["kl", "reverse_kl", "jsd"] = "kl",
    beta: Share = 0.5,
    temperature: Positive = 1.0,
    reduction: Literal["mean", "rows", "batchmean", "sum"] = "rows",
    align: Literal["error", "truncate"] = "error",
    chunk: Count | None = None,
    ignore: Tensor | None = None,
) -> Tensor:
    """kl_loss or jsd_loss of hidden states through their output layers (heads), a chunk of rows at a time.

    student_hidden    (B, ..., D_s), the last axis the hidden one: (N, D), (B, T, D).
    teacher_hidden    (B, ..., D_t), with the same rows; detached.
    student_weight    (K, D_s), the weight of the student's head, as nn.Linear has it; gets gradients.
    teacher_weight    (K, D_t); detached.
    student_bias      (K,), gets gradients. teacher_bias: (K,), detached.
    kind, beta        as in `divergence`: KL(teacher || student), its reverse, or the generalised Jensen-Shannon
                      divergence with the teacher's share beta.
    temperature       divides the logits; the loss is multiplied by its square.
    reduction         "rows": the mean over all rows that count, as of tokens. "mean": over samples of the mean over a
                      sample's rows. "batchmean": the sum over rows divided by B. "sum": the sum over rows.
    align             what to do where heads have different numbers of classes: "error", or "truncate": the first ones
                      are compared, which both have.
    chunk             rows at a time; by default as many as have 2^22 logits, at least 128.
    ignore            bool (B, ...): rows that are true don't count, whatever is in them.

    Returns a scalar in float32 (float64 if an input is), 0 where no row counts; raises TypeError or ValueError that
    names the argument. dtypes may differ. Under torch.compile the chunks of a batch size are unrolled.

    TRL's and Liger-Kernel's fused linear Jensen-Shannon divergence is kind="jsd" with their beta and temperature,
    divided by temperature^2, but for beta 0 and 1, where they have kind="kl" and "reverse_kl".
    """
    check_options(
        linear_divergence_loss, kind=kind, beta=beta, temperature=temperature, reduction=reduction, align=align,
        chunk=chunk,
    )  # fmt: skip
    student = _side("student", student_hidden, student_weight, student_bias)
    teacher = _side("teacher", *map(_constant, (teacher_hidden, teacher_weight, teacher_bias)))
    student, teacher = _aligned(student, teacher, align)
    rows = student.hidden.shape[:-1]
    if ignore is not None:
        if not isinstance(ignore, Tensor) or ignore.dtype != torch.bool or ignore.shape != rows:
            raise ValueError(f"ignore: expected a bool tensor of shape {tuple(rows)}, got {shapes.describe(ignore)}")
        if ignore.device != student.hidden.device:
            raise ValueError(f"ignore: expected device {student.hidden.device}, got {ignore.device}")
    with without_autocast(student.hidden):
        return temperature**2 * _chunked(student, teacher, kind, beta, temperature, reduction, chunk, ignore)


class _Side(NamedTuple):
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None


def _constant(x):
    return constant(x) if isinstance(x, Tensor) else x


def _side(who: str, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> _Side:
    """Raises TypeError or ValueError that names the argument."""
    for name, x in ((f"{who}_hidden", hidden), (f"{who}_weight", weight), (f"{who}_bias", bias)):
        if x is None and name.endswith("bias"):
            continue
        if not isinstance(x, Tensor) or x.dtype not in shapes.FEATURE_DTYPES or x.layout != torch.strided:
            raise TypeError(f"{name}: expected a dense floating-point tensor, got {shapes.describe(x)}")
    if hidden.dim() < 2 or 0 in hidden.shape[1:]:
        raise ValueError(f"{who}_hidden: expected (B, ..., D), no size but the batch's zero, got {tuple(hidden.shape)}")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1] or not weight.shape[0]:
        expected = f"(classes, {hidden.shape[-1]}) for {who}_hidden {tuple(hidden.shape)}"
        raise ValueError(f"{who}_weight: expected {expected}, got {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{who}_bias: expected shape {tuple(weight.shape[:1])}, got {tuple(bias.shape)}")
    for name, x in ((f"{who}_weight", weight), (f"{who}_bias", bias)):
        if x is not None and x.device != hidden.device:
            raise ValueError(f"{name}: expected device {hidden.device} as {who}_hidden, got {x.device}")
    return _Side(hidden, weight, bias)


def _aligned(student: _Side, teacher: _Side, align: str) -> tuple[_Side, _Side]:
    """Both with the same classes and rows. Raises ValueError that names the argument."""
    if teacher.hidden.shape[:-1] != student.hidden.shape[:-1] or teacher.hidden.device != student.hidden.device:
        expected = f"rows {tuple(student.hidden.shape[:-1])} on {student.hidden.device} as student_hidden"
        raise ValueError(f"teacher_hidden: expected {expected}, got {shapes.describe(teacher.hidden)}")
    if student.weight.shape[0] == teacher.weight.shape[0]:
        return student, teacher
    if align == "error":
        raise ValueError(
            f"teacher_weight: expected {student.weight.shape[0]} classes as student_weight, got "
            f"{teacher.weight.shape[0]}; align='truncate' compares the first ones, which both have"
        )
    classes = min(student.weight.shape[0], teacher.weight.shape[0])
    cut = [
        _Side(x.hidden, x.weight[:classes], None if x.bias is None else x.bias[:classes]) for x in (student, teacher)
    ]
    return cut[0], cut[1]


def _chunked(
    student: _Side, teacher: _Side, kind: str, beta: float, temperature: float, reduction: str, chunk: int | None,
    ignore: Tensor | None,
) -> Tensor:  # fmt: skip
    dtype = torch.float32
    for x in (*student, *teacher):
        dtype = dtype if x is None else torch.promote_types(dtype, shapes.accumulation_dtype(x.dtype))
    shares, largest = _shares(student.hidden, ignore, reduction, dtype)
    options = None
    if shapes.changing(beta, temperature):
        numbers = [shapes.scalar(x, torch.device("cpu"), torch.float64) for x in (beta, temperature)]
        options, beta, temperature = torch.stack(numbers), 0.5, 1.0
    chunk = max(LOGITS // student.weight.shape[0], ROWS) if chunk is None else chunk
    needed = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in student]
    flat = [side._replace(hidden=side.hidden.reshape(-1, side.hidden.shape[-1])) for side in (student, teacher)]
    skip = None if ignore is None else ignore.reshape(-1)
    total = _Chunks.apply(*flat[0], *flat[1], shares, skip, dtype, check_kind(kind), beta, temperature, options, chunk,
                          needed)[0]  # fmt: skip
    return total * largest


def _shares(hidden: Tensor, ignore: Tensor | None, reduction: str, dtype: torch.dtype) -> tuple[Tensor, Tensor | float]:
    """What each row counts in the loss, (rows,), over the largest such share; and that one.

    So gradients of logits are of ordinary size when they are rounded.
    """
    batch = hidden.shape[0]
    per_sample = hidden.shape[1:-1].numel()
    if ignore is None:
        count = {"sum": 1, "batchmean": batch}.get(reduction, batch * per_sample)
        return hidden.new_ones(batch * per_sample, dtype=dtype), 1 / max(count, 1)
    valid = (~ignore).reshape(batch, per_sample)
    counts = valid.sum(1)
    if reduction == "mean":
        least = torch.where(counts > 0, counts, per_sample).amin() if batch else counts.new_ones(())
        shares = valid * (least / counts.clamp_min(1))[:, None]
        return shares.to(dtype).reshape(-1), 1 / (least * (counts > 0).sum().clamp_min(1)).to(dtype)
    largest: Tensor | float = 1 / counts.sum().clamp_min(1).to(dtype)
    if reduction != "rows":
        largest = 1.0 if reduction == "sum" else 1 / max(batch, 1)
    return valid.to(dtype).reshape(-1), largest


class _Chunks(torch.autograd.Function):
    """The sum over rows of shares times divergences, with the gradients of the student's side at once."""

    @staticmethod
    def forward(
        s_hidden, s_weight, s_bias, t_hidden, t_weight, t_bias, shares, ignore, dtype, kind, beta, temperature, options,
        chunk, needed,
    ):  # fmt: skip
        student, teacher = _Side(s_hidden, s_weight, s_bias), _Side(t_hidden, t_weight, t_bias)
        device, rows = s_hidden.device, s_hidden.shape[0]
        forward = backends.kernel("divergence_forward", device)
        backward = backends.kernel("divergence_backward", device)
        heads = [_operand(side.weight, dtype) for side in (student, teacher)]
        total = s_hidden.new_zeros((), dtype=dtype)
        of_hidden, of_weight, of_bias = (
            torch.zeros_like(x, dtype=dtype, memory_format=torch.contiguous_format) if wanted else total.new_empty(0)
            for x, wanted in zip(student, needed, strict=True)
        )
        for first in range(0, rows, chunk):
            part = slice(first, min(first + chunk, rows))
            skip = None if ignore is None else ignore[part]
            hidden = [_operand(side.hidden[part], dtype, skip) for side in (student, teacher)]
            logits = [
                _logits(h, w, side.bias, dtype).unsqueeze(2)
                for h, w, side in zip(hidden, heads, (student, teacher), strict=True)
            ]
            values, saved = forward(*logits, skip, kind, beta, temperature, options, any(needed))
            total = total + (values * shares[part]).sum()
            if any(needed):
                grad = backward(shares[part], *logits, saved, kind, beta, temperature, options).squeeze(2)
                del logits
                if needed[0]:
                    of_hidden[part] = _product(_as(grad, heads[0]), heads[0], dtype)
                if needed[1]:
                    of_weight += _product(_as(grad, hidden[0]).T, hidden[0], dtype)
                if needed[2]:
                    of_bias += grad.sum(0)
        return total, of_hidden, of_weight, of_bias

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, *gradients = output
        ctx.mark_non_differentiable(*gradients)
        ctx.set_materialize_grads(False)  # zeros as large as a head
        ctx.needed = inputs[-1]
        ctx.save_for_backward(*gradients, *(x for x, wanted in zip(inputs[:3], ctx.needed, strict=True) if wanted))

    @staticmethod
    def backward(ctx, grad, *_):
        if grad is None:
            return (None,) * 15
        gradients, inputs = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
        given = iter(inputs)
        results = [
            connect_refusal((x * grad).to(next(given).dtype), *inputs, grad) if wanted else None
            for x, wanted in zip(gradients, ctx.needed, strict=True)
        ]
        return *results, *[None] * 12


def _operand(x: Tensor, dtype: torch.dtype, ignore: Tensor | None = None) -> Tensor:
    """As products take it: half precision where they can be float32, else in the dtype of the logits; 0 in rows that
    don't count, since NaN times 0 is not 0."""
    x = x if _mixes(x, dtype) else x.to(dtype)
    return x if ignore is None else x.masked_fill(ignore[:, None], 0)


def _as(grad: Tensor, other: Tensor) -> Tensor:
    """Gradients of logits as they are multiplied with `other`."""
    return grad.to(other.dtype)


def _mixes(x: Tensor, dtype: torch.dtype) -> bool:
    return x.device.type == "cuda" and x.dtype in (torch.bfloat16, torch.float16) and dtype == torch.float32


def _product(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """x y in `dtype`."""
    if x.dtype == y.dtype and _mixes(x, dtype):
        return torch.mm(x, y, out_dtype=dtype)
    return x.to(dtype) @ y.to(dtype)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    logits = _product(hidden, weight.T, dtype)
    return logits if bias is None else logits.add_(bias.to(dtype))


LinearDivergenceLoss = module(linear_divergence_loss, "LinearDivergenceLoss")
