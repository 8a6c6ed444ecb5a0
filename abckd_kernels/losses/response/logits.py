"""Losses on logits: KL, reverse KL, Jensen-Shannon (the op `divergence`), DKD (the op, three times), DIST.

p = softmax(teacher_logits / temperature) and q = softmax(student_logits / temperature) along the classes; a row is one
choice of all other indices, so a mask (B, C, T, F) has T F rows per sample. Losses are multiplied by temperature^2,
always, which keeps gradients of one size; where published code leaves that out, weights=[1 / temperature**2] does.

Every function takes, beside its own options,

student_logits   logits, or a list of n, at least 2-D with the batch first: (B, K), (B, C, T), (B, C, T, F), (B, T, K);
                 float32, float64, bfloat16 or float16.
teacher_logits   as many, of the same shapes; detached.
temperature      divides the logits.
dim              the axis of the classes; default 1, which is also the last one of (B, K).
ignore           bool, of the logits' shape without `dim`, or a list of n: rows that are true don't count, whatever is
                 in them.
lengths          (B,) integers: valid frames; later ones don't count. Frames are the first axis behind the batch that is
                 not the classes'.
padded_length    the frames to which lengths refer; default: those of the logits with most.
weights          n numbers; default 1/n.

returns a scalar in float32 (float64 if a tensor of logits is), 0 where no row counts, and raises TypeError or
ValueError that names the argument. Logits of -inf are classes that can't occur: a term with probability 0 is 0, and
KL(p || q) is infinite where q can't do what p can.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ...ops import shapes
from ...ops.correlation import constant_below, correlation
from ...ops.divergence import divergence
from ..common.arithmetic import inverse, root, wide
from ..common.checks import listed
from ..common.features import Padding, constant, weighted, without_autocast
from ..common.modules import module
from ..common.options import Convention, Finite, Positive, Share, check_options
from ._decoupled import decoupled

Logits = Tensor | Sequence[Tensor]
Reduction = Literal["mean", "rows", "batchmean"]


def kl_loss(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    temperature: Positive = 4.0,
    reverse: bool = False,
    standardize: bool = False,
    reduction: Reduction = "mean",
    dim: int = 1,
    ignore: Tensor | Sequence[Tensor] | None = None,
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Knowledge distillation (Hinton, Vinyals and Dean, arXiv 1503.02531): temperature^2 KL(p || q), mean over rows.

    reverse       KL(q || p) instead, which seeks a mode of the teacher.
    standardize   logits first become (x - mean) / (std + 1e-7) along the classes, std over K - 1 (logit
                  standardisation, Sun et al., CVPR 2024, as torchdistill's LogitStdKDLoss); it needs two classes.
                  Constant logits become 0 and get no gradient (published: one of 1e7).
    reduction     "mean": the mean over samples of the mean over a sample's rows; samples without a row that counts
                  are left out, so that of (N, K) it is the mean over rows. "rows": the mean over all rows that count,
                  as of the tokens of (B, T, K). "batchmean": the sum over rows divided by B, as published code has
                  it for maps (`kl_div(..., reduction="batchmean")`).

    RepDistiller, mdistiller and SemCKD are temperature^2 KL, as here. torchdistill's KDLoss is
    alpha cross_entropy + (1 - alpha) kl_loss, but drops temperature^2 where alpha is 0 or None; SKD's instance term
    never has it.
    """
    check_options(kl_loss, temperature=temperature, reverse=reverse, standardize=standardize, reduction=reduction)
    kind = "reverse_kl" if reverse else "kl"

    def term(_, s, t, skip, dim):
        if standardize:
            s, t = (_standardized(x, skip, dim, name) for x, name in ((s, "student_logits"), (t, "teacher_logits")))
        return divergence(s, t, kind=kind, temperature=temperature, dim=dim, ignore=skip)

    return _mean(term, _pairs(student_logits, teacher_logits, dim, ignore, lengths, padded_length), reduction,
                 temperature, weights)  # fmt: skip


def jsd_loss(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    beta: Share = 0.5,
    temperature: Positive = 1.0,
    convention: Convention = "paper",
    reduction: Reduction = "mean",
    dim: int = 1,
    ignore: Tensor | Sequence[Tensor] | None = None,
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Generalised Jensen-Shannon divergence (as in Agarwal et al., ICLR 2024), mean over rows, times temperature^2.

    beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q; at most log 2 for beta = 1/2 and temperature 1.

    beta         the teacher's share; towards 0 and 1 the loss goes to 0.
    convention   "published": KL(p || q) at beta = 0 and KL(q || p) at beta = 1, the special cases of Liger-Kernel and
                 TRL, to which no other beta is near.
    reduction    as in kl_loss. Liger-Kernel, of (N, K) with `ignore` = (labels == ignore_index): weights=[1 /
                 temperature**2], because it leaves temperature^2 out; by default it adds cross entropy, half and half.
    """
    check_options(jsd_loss, beta=beta, temperature=temperature, convention=convention, reduction=reduction)
    kind = "jsd"
    if convention == "published" and (beta == 0 or beta == 1):
        kind = "reverse_kl" if beta else "kl"

    def term(_, s, t, skip, dim):
        return divergence(s, t, kind=kind, beta=beta, temperature=temperature, dim=dim, ignore=skip)

    return _mean(term, _pairs(student_logits, teacher_logits, dim, ignore, lengths, padded_length), reduction,
                 temperature, weights)  # fmt: skip


def dkd_loss(
    student_logits: Logits,
    teacher_logits: Logits,
    labels: Tensor | Sequence[Tensor],
    *,
    alpha: Finite = 1.0,
    beta: Finite = 8.0,
    temperature: Positive = 4.0,
    reduction: Reduction = "mean",
    dim: int = 1,
    ignore: Tensor | Sequence[Tensor] | None = None,
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Decoupled knowledge distillation (Zhao et al., CVPR 2022): alpha TCKD + beta NCKD, mean over rows.

    TCKD = temperature^2 KL of (p_y, 1 - p_y), the target class y against all others; NCKD = temperature^2 KL of the
    softmax over the other classes. With two classes NCKD is 0 (published code: inf or NaN in half precision).

    labels   integers of the logits' shape without `dim`, or a list of n: y. Where a row doesn't count, anything.

    mdistiller's dkd_loss is this; its warm-up min(epoch / 20, 1) is a factor for the caller.
    """
    check_options(dkd_loss, alpha=alpha, beta=beta, temperature=temperature, reduction=reduction)
    found = _pairs(student_logits, teacher_logits, dim, ignore, lengths, padded_length)
    targets = [constant(y) for y in _each_of("labels", labels, len(found))]

    def term(index, s, t, skip, dim):
        y = targets[index]
        rows = s.shape[:dim] + s.shape[dim + 1 :]
        if y.dtype.is_floating_point or y.dtype.is_complex or y.dtype == torch.bool or y.shape != rows:
            raise ValueError(f"labels: expected integers of shape {tuple(rows)}, got {shapes.describe(y)}")
        if s.shape[dim] == 1:
            return wide(s).select(dim, 0) * 0
        y = (y if skip is None else y.masked_fill(skip, 0)).unsqueeze(dim)
        nckd, *binary = decoupled(s, t, y, skip, dim, temperature)
        return alpha * divergence(*binary, temperature=temperature, dim=dim, ignore=skip) + beta * nckd

    return _mean(term, found, reduction, temperature, weights)


def dist_loss(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    beta: Finite = 1.0,
    gamma: Finite = 1.0,
    temperature: Positive = 1.0,
    dim: int = 1,
    ignore: Tensor | Sequence[Tensor] | None = None,
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """DIST (Huang et al., NeurIPS 2022): correlations instead of values.

    temperature^2 (beta (1 - mean_rows rho(q_row, p_row)) + gamma (1 - mean_classes rho(q_class, p_class))), rho
    Pearson's correlation: of a row over the classes, and of a class over all rows of the batch that count.

    What is constant has no correlation: its rho is 1 if both are, else 0, with no gradient. (torchdistill's DISTLoss
    divides there by 1e-8.) 1 - rho is half the squared distance of the centred and normalised vectors, which
    loses no digits where student and teacher are close.
    """
    check_options(dist_loss, beta=beta, gamma=gamma, temperature=temperature)
    found = _pairs(student_logits, teacher_logits, dim, ignore, lengths, padded_length)
    losses = []
    for s, t, skip, axis in found:
        with without_autocast(s):
            apart = correlation(s, t, temperature=temperature, dim=axis, ignore=skip)
            losses.append(temperature**2 * (beta * apart.along_classes + gamma * apart.along_rows))
    return weighted(losses, weights, [pair[:2] for pair in found])


def _zeroed(x: Tensor, ignore: Tensor | None, dim: int) -> Tensor:
    """In float32 (float64), 0 in the rows that don't count, where derivatives would make NaN of what is in them.

    Widened once: the gradients of several terms are added before they are rounded to half precision.
    """
    x = wide(x)
    return x if ignore is None else x.masked_fill(ignore.unsqueeze(dim), 0)


def _standardized(x: Tensor, ignore: Tensor | None, dim: int, name: str) -> Tensor:
    if x.shape[dim] < 2:
        raise ValueError(f"{name}: expected at least two classes to standardize, got shape {tuple(x.shape)}")
    x = _zeroed(x, ignore, dim)
    centred = x - x.mean(dim, keepdim=True)
    square = centred.square().sum(dim, keepdim=True)
    constant = square <= constant_below(x.detach().square().sum(dim, keepdim=True))
    deviation = root(square.masked_fill(constant, 0) / (x.shape[dim] - 1)) + 1e-7
    return centred * inverse(deviation.masked_fill(constant, 0))


class _Pair(NamedTuple):
    """Logits, the rows that don't count, (B, ...) bool or None, and the axis of the classes, from the front."""

    student: Tensor
    teacher: Tensor
    ignore: Tensor | None
    dim: int


def _pairs(student_logits, teacher_logits, dim, ignore, lengths, padded_length) -> list[_Pair]:
    """Checked pairs, the teacher's logits detached. Raises TypeError or ValueError that names the argument."""
    students, teachers = listed("student_logits", student_logits), listed("teacher_logits", teacher_logits)
    for name, group in (("student_logits", students), ("teacher_logits", teachers)):
        for index, x in enumerate(group):
            _check(x, f"{name}[{index}]")
    if len(students) != len(teachers):
        raise ValueError(f"teacher_logits: expected {len(students)} tensors, one per student's, got {len(teachers)}")
    first = students[0]
    for index, pair in enumerate(zip(students, teachers, strict=True)):
        for name, x in zip(("student_logits", "teacher_logits"), pair, strict=True):
            if x.shape != pair[0].shape:
                raise ValueError(
                    f"{name}[{index}]: expected shape {tuple(pair[0].shape)} as student_logits[{index}], "
                    f"got {tuple(x.shape)}"
                )
            if x.shape[0] != first.shape[0] or x.device != first.device:
                raise ValueError(
                    f"{name}[{index}]: expected batch size {first.shape[0]} on {first.device} as student_logits[0], "
                    f"got {x.shape[0]} on {x.device}"
                )
    for x in students:
        if not isinstance(dim, int) or not -x.dim() <= dim < x.dim() or dim % x.dim() == 0:
            expected = f"an axis of the logits {tuple(x.shape)} but the batch's"
            raise ValueError(f"dim: expected {expected}, got {shapes.describe(dim)}")
    lengths = shapes.check_lengths(lengths, first.shape[0], first.device)
    if padded_length is None:
        padded_length = max(_frames(x, dim) for x in students) if lengths is not None else 1
    padding = Padding(lengths, shapes.check_padded_length(padded_length))
    masks = [None] * len(students) if ignore is None else _each_of("ignore", ignore, len(students))
    return [
        _Pair(s, constant(t), _ignored(s, dim % s.dim(), mask, padding), dim % s.dim())
        for s, t, mask in zip(students, teachers, masks, strict=True)
    ]


def _each_of(name: str, given: Tensor | Sequence[Tensor], count: int) -> list[Tensor]:
    """What belongs to each pair of logits: one tensor, for all, or a list."""
    items = [given] * count if isinstance(given, Tensor) else list(listed(name, given))
    if len(items) != count or not all(isinstance(x, Tensor) for x in items):
        raise ValueError(f"{name}: expected {count} tensors, one per pair of logits, got {shapes.describe(given)}")
    return items


def _check(x: Tensor, name: str) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor of logits, got {type(x).__name__}")
    if x.dtype not in shapes.FEATURE_DTYPES:
        raise TypeError(f"{name}: expected float32, float64, bfloat16 or float16, got {x.dtype}")
    if x.dim() < 2 or 0 in x.shape[1:]:
        raise ValueError(f"{name}: expected at least (B, K), no size but the batch's zero, got {tuple(x.shape)}")


def _frames(x: Tensor, dim: int) -> int:
    if x.dim() < 3:
        raise ValueError(f"lengths: expected logits with frames, such as (B, C, T), got {tuple(x.shape)}")
    return x.shape[2 if dim % x.dim() == 1 else 1]


def _ignored(x: Tensor, dim: int, ignore: Tensor | None, padding: Padding) -> Tensor | None:
    """(B, ...) bool, the rows that don't count; None where all do."""
    rows = x.shape[:dim] + x.shape[dim + 1 :]
    if ignore is not None:
        if not isinstance(ignore, Tensor) or ignore.dtype != torch.bool or ignore.shape != rows:
            got = f"{ignore.dtype} {tuple(ignore.shape)}" if isinstance(ignore, Tensor) else type(ignore).__name__
            raise ValueError(f"ignore: expected a bool tensor of shape {tuple(rows)}, got {got}")
        if ignore.device != x.device:
            raise ValueError(f"ignore: expected device {x.device}, got {ignore.device}")
    valid = None if padding.lengths is None else padding.mask(x, _frames(x, dim))
    if valid is None:
        return ignore
    beyond = ~valid
    beyond = beyond.view(*beyond.shape, *[1] * (len(rows) - 2)).expand(rows)
    return beyond if ignore is None else beyond | ignore


def _mean(term, found: Sequence[_Pair], reduction: str, temperature: float, weights) -> Tensor:
    """The weighted sum of the means of term(index, *pair), (B, ...) values that are 0 where rows don't count."""
    losses = []
    for index, pair in enumerate(found):
        with without_autocast(pair.student):
            values = term(index, *pair)[:, None].flatten(1)
            losses.append(temperature**2 * _reduced(values, pair.ignore, reduction))
    return weighted(losses, weights, [pair[:2] for pair in found])


def _reduced(values: Tensor, ignore: Tensor | None, reduction: str) -> Tensor:
    total = values.sum(1)
    if reduction == "batchmean":
        return total.sum() / max(len(values), 1)
    if ignore is None:
        return total.sum() / max(values.numel(), 1)
    counts = (~ignore).reshape(values.shape).sum(1)
    if reduction == "rows":
        return total.sum() / counts.sum().clamp_min(1)
    return (total / counts.clamp_min(1)).sum() / (counts > 0).sum().clamp_min(1)


KLLoss = module(kl_loss, "KLLoss")
JSDLoss = module(jsd_loss, "JSDLoss")
DKDLoss = module(dkd_loss, "DKDLoss")
DISTLoss = module(dist_loss, "DISTLoss")
