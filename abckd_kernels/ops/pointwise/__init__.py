"""pointwise: a function of a student's and a teacher's value at every position, summed over the positions of a channel.

For a student s and a teacher t, both (B, C, *spatial):

    sums[b, c] = sum_p f(s[b, c, p], t[b, c, p])      (B, C), over the valid positions p (see ops.shapes on padding)

in float32 (float64 for float64 features). f is one of KINDS, with x = `parameter`, l = `third`, m = `per_channel`:

    kind               f(s, t)                                                              loss
    "squared"          (s - t)^2                                                            hint, VID
    "power"            |s - t|^x, x > 0                                                     SRD
    "rectified"        (max(0, s) - t)^2                                                    hint behind a ReLU
    "boundary"         max(0, x - s)^2 where t > 0, max(0, s + x)^2 elsewhere               AB
    "margin"           (s - t')^2 where t > 0 or s > t', 0 elsewhere; t' = max(t, m[c])     OFD
    "heteroscedastic"  (t - s)^2 / (x + exp(l)) + l, l (B, C, *spatial)                     PAD

Derivative, with g (B, C) the gradient of the sums: gs = g[b, c] df/ds, gl = g[b, c] df/dl, zero in padded frames and
where a kink leaves it open; s, t and l are constants to it otherwise. The teacher and m get none.

Bytes, with S the size of a feature: forward reads s and t, 2 S (3 S with l), and writes (B, C) values; backward reads
the same and writes gs, 3 S altogether (5 S with l).

A further kind is a line of KINDS, a pair of functions in reference.py and in triton.py; in csrc a name in
PointwiseKind (arguments.h) and in kKinds (torch/pointwise.cpp), a struct and its case in cpu/pointwise.inl.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import shapes
from ..contract import op


class Kind(NamedTuple):
    """Which arguments beside student and teacher a kind takes; parameter: its default, None if it takes none."""

    parameter: float | None = None
    third: bool = False
    per_channel: bool = False


KINDS = {
    "squared": Kind(),
    "power": Kind(parameter=4.0),
    "rectified": Kind(),
    "boundary": Kind(parameter=1.0),
    "margin": Kind(per_channel=True),
    "heteroscedastic": Kind(parameter=1e-6, third=True),
}
OPERANDS = (
    "Tensor student, Tensor teacher, Tensor? third, Tensor? per_channel, str kind, float parameter,"
    " Tensor? lengths, SymInt padded_length"
)


def pointwise(
    student: Tensor,
    teacher: Tensor,
    *,
    kind: str = "squared",
    parameter: float | None = None,
    third: Tensor | None = None,
    per_channel: Tensor | None = None,
    lengths: Tensor | None = None,
    padded_length: int | None = None,
) -> Tensor:
    """Sums over positions of a function of student and teacher (the definition is at the top of this module).

    student         (B, C, T), (B, C, T, F) or (B, C, H, W); float32, float64, bfloat16 or float16. Contiguous and
                    channels_last are read as they lie, another layout costs a copy.
    teacher         of the same shape; detached. Another dtype or another layout than the student's costs a copy.
    kind            a name in KINDS.
    parameter       a number, by default that of KINDS: the exponent, the margin, or what is added to the variance.
    third           of the student's shape, for "heteroscedastic": the logarithm of the variance.
    per_channel     (C,), for "margin"; detached.
    lengths         (B,) integers: valid frames; what later ones hold is not read.
    padded_length   the frames to which lengths refer; default: the features' own T.

    Returns (B, C). Raises TypeError or ValueError that names the argument.
    """
    needs = check_kind(kind)
    parameter = check_parameter(kind, parameter)
    for name, value, wanted in (("third", third, needs.third), ("per_channel", per_channel, needs.per_channel)):
        if (value is not None) != wanted:
            raise ValueError(f"{name}: expected {'a tensor' if wanted else 'None'} for kind {kind!r}, got {value!r}")
    given = {"student": student, "teacher": teacher} | ({} if third is None else {"third": third})
    for name, x in given.items():
        shapes.check_feature(x, name)
        if x.shape != student.shape:
            raise ValueError(f"{name}: expected shape {tuple(student.shape)} as the student's, got {tuple(x.shape)}")
        if x.device != student.device:
            raise ValueError(f"{name}: expected device {student.device} as the student's, got {x.device}")
    dtype = student.dtype
    for x in given.values():
        dtype = torch.promote_types(dtype, x.dtype)
    if per_channel is not None:
        if per_channel.shape != student.shape[1:2]:
            raise ValueError(f"per_channel: expected shape {(student.shape[1],)}, got {tuple(per_channel.shape)}")
        per_channel = per_channel.detach().to(student.device, shapes.accumulation_dtype(dtype))
    padded_length = shapes.check_padded_length(student.shape[2] if padded_length is None else padded_length)
    lengths = shapes.check_lengths(lengths, student.shape[0], student.device)
    third = None if third is None else third.to(dtype)
    return _pointwise(
        student.to(dtype), teacher.detach().to(dtype), third, per_channel, kind, parameter, lengths, padded_length
    )


def check_kind(kind: str) -> Kind:
    """What KINDS has under that name. Raises ValueError."""
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(map(repr, KINDS))}, got {kind!r}")
    return KINDS[kind]


def check_parameter(kind: str, parameter: float | None) -> float:
    """`parameter` or the kind's own. Raises ValueError unless it is a positive number, or none where none is taken."""
    default = KINDS[kind].parameter
    if default is None:
        if parameter is not None:
            raise ValueError(f"parameter: expected None for kind {kind!r}, got {parameter!r}")
        return 0.0
    if parameter is None:
        return default
    if not isinstance(parameter, int | float) or not parameter > 0:
        raise ValueError(f"parameter: expected a positive number, got {shapes.describe(parameter)}")
    return float(parameter)


def _forward_shapes(student, teacher, third, per_channel, kind, parameter, lengths, padded_length):
    return student.new_empty(student.shape[:2], dtype=shapes.accumulation_dtype(student.dtype))


def _backward_shapes(grad_sums, student, teacher, third, per_channel, kind, parameter, lengths, padded_length):
    return shapes.empty_like(student), shapes.empty_like(student) if KINDS[kind].third else student.new_empty(0)


_pointwise = op(
    __name__,
    forward=f"({OPERANDS}) -> Tensor sums",
    backward=f"(Tensor grad_sums, {OPERANDS}) -> (Tensor student, Tensor third)",
    forward_shapes=_forward_shapes,
    backward_shapes=_backward_shapes,
    native=("cpu",),
)
