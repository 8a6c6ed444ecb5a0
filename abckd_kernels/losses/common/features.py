"""What losses on features share before any mathematics: pairs of features, padding, resizing, gathering, weights.

The student's and the teacher's argument is each one tensor or a list; items at the same position form a pair. Frames
beyond `lengths` become zero before anything else reads them, so that garbage there, NaN included, reaches neither loss
nor gradient. Teacher features are detached.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from ...ops import shapes
from .checks import check_weights, listed

__all__ = [
    "Padding",
    "batch_mean",
    "check_equal",
    "check_pairs",
    "checked",
    "each_pair",
    "without_autocast",
    "flat",
    "gather",
    "on_one_grid",
    "pairs",
    "resized",
    "smaller",
    "weighted",
]


class Padding(NamedTuple):
    """Valid frames of a batch; None lengths: all are."""

    lengths: Tensor | None
    padded_length: int

    def mask(self, x: Tensor, frames: int | None = None) -> Tensor | None:
        """(B, T) bool, true where a frame of `x` (or of a map with `frames` frames) is valid; None where all are."""
        return shapes.frame_mask(self.lengths, x.shape[2] if frames is None else frames, self.padded_length)

    def zeroed(self, x: Tensor) -> Tensor:
        """`x` with zero in the frames that are not valid, and no gradient there."""
        return self.filled(x, 0)

    def filled(self, x: Tensor, value: float) -> Tensor:
        """`x` with `value` in the frames that are not valid, and no gradient there."""
        mask = None if self.lengths is None else shapes.broadcast_mask(x, *self)
        return x if mask is None else x.masked_fill(~mask, value)

    def position_mask(self, x: Tensor) -> Tensor | None:
        """(B, N) bool, true where one of all positions of `x` is in a valid frame; None where all are."""
        mask = self.mask(x)
        return None if mask is None else mask.repeat_interleave(x.shape[2:].numel() // x.shape[2], 1)

    def positions(self, x: Tensor) -> Tensor | int:
        """Valid positions of each sample, (B,), at least 1; a number where all are."""
        if x.dim() == 2:
            return 1
        mask = self.mask(x)
        bands = x.shape[3] if x.dim() == 4 else 1
        return x.shape[2] * bands if mask is None else (mask.sum(1) * bands).clamp_min(1)

    def mean(self, x: Tensor) -> Tensor:
        """Mean over the valid positions of a feature whose other frames are zero, (B, C); vectors as they are."""
        x = x.to(shapes.accumulation_dtype(x.dtype))
        if x.dim() == 2:
            return x
        count = self.positions(x)
        return x.flatten(2).sum(2) / (count[:, None] if isinstance(count, Tensor) else count)


def checked(
    student_features: Tensor | Sequence[Tensor],
    teacher_features: Tensor | Sequence[Tensor],
    lengths: Tensor | None,
    padded_length: int | None,
    *,
    vectors: bool = False,
    axes: bool = False,
) -> tuple[list[Tensor], list[Tensor], Padding]:
    """The student's features, the teacher's, detached, and the padding; checked, padded frames as they come.

    vectors   features may be (B, D), too.
    axes      all features must have as many.

    Raises TypeError or ValueError that names the argument.
    """
    students, teachers = listed("student_features", student_features), listed("teacher_features", teacher_features)
    for name, features in (("student_features", students), ("teacher_features", teachers)):
        for index, x in enumerate(features):
            _check(x, f"{name}[{index}]", students[0], vectors, axes)
    features = [*students, *teachers]
    lengths = shapes.check_lengths(lengths, features[0].shape[0], features[0].device)
    if lengths is not None and any(x.dim() == 2 for x in features):
        raise ValueError("lengths: expected features with frames (B, C, T) or (B, C, T, F), got vectors (B, D)")
    if padded_length is None:
        padded_length = max([x.shape[2] for x in features if x.dim() > 2], default=1)
    padding = Padding(lengths, shapes.check_padded_length(padded_length))
    return list(students), [constant(x) for x in teachers], padding


def constant(x: Tensor) -> Tensor:
    """A teacher's tensor without its graph; a copy of one made in inference mode, which autograd can't save."""
    if torch.compiler.is_compiling() or not x.is_inference() or torch.is_inference_mode_enabled():
        return x.detach()
    return x.detach().clone()


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Where autocast would round what follows to half precision; nothing on devices that have no autocast."""
    device = x.device.type
    # torch 2.11 cannot trace the question
    has_it = device != "meta" if torch.compiler.is_compiling() else torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if has_it else nullcontext()


def pairs(
    student_features: Tensor | Sequence[Tensor],
    teacher_features: Tensor | Sequence[Tensor],
    lengths: Tensor | None,
    padded_length: int | None,
    *,
    vectors: bool = False,
    zeroed: bool = True,
) -> tuple[list[tuple[Tensor, Tensor]], Padding]:
    """[(student, teacher), ...], as `checked` has them, padded frames zero; and the padding.

    zeroed    False leaves padded frames as they are, for ops that do not read them: zeroing costs a copy.
    """
    students, teachers, padding = checked(student_features, teacher_features, lengths, padded_length, vectors=vectors)
    check_pairs(len(students), len(teachers))
    if zeroed:
        students, teachers = ([padding.zeroed(x) for x in group] for group in (students, teachers))
    return list(zip(students, teachers, strict=True)), padding


def check_pairs(n: int, m: int) -> None:
    """Raise ValueError unless there are as many teacher features as student features."""
    if n != m:
        raise ValueError(f"teacher_features: expected {n} features, one per student feature, got {m}")


def _check(x: Tensor, name: str, first: Tensor, vectors: bool, axes: bool) -> None:
    vector = vectors and isinstance(x, Tensor) and x.dim() == 2
    shapes.check_feature(x[..., None] if vector else x, name)
    for what, expected, got in (
        ("batch size", first.shape[0], x.shape[0]),
        ("device", first.device, x.device),
        ("number of axes", first.dim(), x.dim() if axes else first.dim()),
    ):
        if got != expected:
            raise ValueError(f"{name}: expected {what} {expected} as in student_features[0], got {got}")


def check_equal(index: int, what: str, expected, got) -> None:
    """Raise ValueError unless a property of teacher_features[index] is the one of student_features[index]."""
    if expected != got:
        raise ValueError(
            f"teacher_features[{index}]: expected {what} {expected} as in student_features[{index}], got {got}"
        )


def flat(x: Tensor) -> Tensor:
    """One row per sample, (B, C * positions)."""
    return x.flatten(1)


def gather(x: Tensor, group, dim: int = 0) -> Tensor:
    """`x` of all processes of the group one after the other along `dim`, with gradients; `x` itself without a group.

    Shapes must agree over the group. Every process computes the same loss L of the whole batch, and its backward adds
    up the gradients that all of them have for its own samples: (number of processes) times dL/dx, which the averaging
    of DistributedDataParallel turns into the parameter gradients of one process with the whole batch.
    """
    if group is None:
        return x
    if not isinstance(group, torch.distributed.ProcessGroup):
        raise TypeError(f"group: expected a torch.distributed process group, got {shapes.describe(group)}")
    return _Gather.apply(x.movedim(dim, 0), group).movedim(0, dim)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group):
        ctx.group, ctx.rows = group, len(x)
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size(group))]
        torch.distributed.all_gather(parts, x, group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(grad, group=ctx.group)
        return grad.narrow(0, torch.distributed.get_rank(ctx.group) * ctx.rows, ctx.rows), None


def smaller(x: Tensor, y: Tensor) -> list[int]:
    """The smaller of two features' spatial sizes, axis by axis."""
    return [min(sizes) for sizes in zip(x.shape[2:], y.shape[2:], strict=True)]


def resized(x: Tensor, sizes: Sequence[int], padding: Padding) -> Tensor:
    """`x` averaged over the windows of adaptive pooling onto `sizes`, over their valid frames only.

    Two small matrix products, so that the backward has no atomics. Window u of n positions onto a is
    floor(u n / a) .. ceil((u + 1) n / a). Frames that are not valid on the new scale are zero.
    """
    with without_autocast(x):
        x = x.to(shapes.accumulation_dtype(x.dtype))
        if len(sizes) == 2 and sizes[1] != x.shape[3]:
            x = x @ _windows(x.shape[3], sizes[1], x).T
        if sizes[0] != x.shape[2]:
            windows = _windows(x.shape[2], sizes[0], x).expand(x.shape[0], -1, -1)
            mask, mask_after = padding.mask(x), padding.mask(x, sizes[0])
            if mask is not None and mask_after is not None:
                windows = windows * mask[:, None] * mask_after[:, :, None]
                windows = windows / windows.sum(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
            x = torch.einsum("but,bct...->bcu...", windows, x)
        return x


def on_one_grid(s: Tensor, t: Tensor, padding: Padding, *, zeroed: bool) -> tuple[Tensor, Tensor]:
    """Both averaged over the windows of adaptive pooling onto the smaller size of each axis; as they are if equal.

    zeroed    padded frames are zero, not what came.
    """
    sizes = smaller(s, t)
    s, t = (
        x if list(x.shape[2:]) == sizes else resized(x if zeroed else padding.zeroed(x), sizes, padding) for x in (s, t)
    )
    return s, t


def _windows(size: int, cells: int, like: Tensor) -> Tensor:
    """(cells, size): row u averages over window u."""
    cell, position = torch.arange(cells, device=like.device)[:, None], torch.arange(size, device=like.device)
    inside = ((position >= cell * size // cells) & (position < -(-(cell + 1) * size // cells))).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def batch_mean(per_sample: Tensor) -> Tensor:
    """Mean of (B,); zero of an empty batch."""
    return per_sample.sum() / max(len(per_sample), 1)


def weighted(losses: Sequence[Tensor], weights, checked: Sequence[Sequence[Tensor]]) -> Tensor:
    """sum_i weights[i] losses[i], 1/n by default: float64 if one of the features is, else float32.

    weights   None, numbers, or a tensor (n,) on the losses' device.
    """
    weights = check_weights(weights, len(losses))
    dtype = losses[0].dtype
    for loss in losses[1:]:
        dtype = torch.promote_types(dtype, loss.dtype)
    if isinstance(weights, Tensor):
        if weights.device != losses[0].device and weights.device.type != "cpu":
            raise ValueError(f"weights: expected a tensor on {losses[0].device}, got one on {weights.device}")
        total = (torch.stack([loss.to(dtype) for loss in losses]) * weights.to(losses[0].device, dtype)).sum()
    elif len(losses) == 1:
        total = losses[0] if weights is None else losses[0] * weights[0]
    else:
        shares = [1 / len(losses)] * len(losses) if weights is None else weights
        total = sum(share * loss.to(dtype) for share, loss in zip(shares, losses, strict=True))
    wide = any(x.dtype == torch.float64 for group in checked for x in group)
    return total.to(torch.float64 if wide else torch.float32)


def each_pair(
    term: Callable[[Tensor, Tensor, Padding], Tensor],
    student_features: Tensor | Sequence[Tensor],
    teacher_features: Tensor | Sequence[Tensor],
    lengths: Tensor | None,
    padded_length: int | None,
    weights,
    *,
    vectors: bool = False,
    zeroed: bool = True,
    equal: Sequence[str] = (),
) -> Tensor:
    """The weighted sum over the pairs of term(student, teacher, padding), a scalar each, or values (B,) to be averaged.

    vectors, zeroed   as in `pairs`.
    equal             what the features of a pair must have alike: "channels", "axes", "size" (of a flattened sample).
    """
    found, padding = pairs(
        student_features, teacher_features, lengths, padded_length, vectors=vectors, zeroed=zeroed
    )
    losses = []
    for index, (s, t) in enumerate(found):
        if "axes" in equal:
            check_equal(index, "number of axes", s.dim(), t.dim())
        if "channels" in equal:
            check_equal(index, "channels", s.shape[1], t.shape[1])
        if "size" in equal:
            check_equal(index, "flattened size", s.shape[1:].numel(), t.shape[1:].numel())
        with without_autocast(s):
            value = term(s, t, padding)
        losses.append(value if value.dim() == 0 else batch_mean(value))
    return weighted(losses, weights, found)
