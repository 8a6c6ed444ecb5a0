"""divergence: how far a student's distribution over classes is from a teacher's, row by row, from logits.

A row is one choice of every index but the classes'. With p = softmax(teacher / temperature) and
q = softmax(student / temperature) of a row:

    "kl"           KL(p || q) = sum_k p log(p / q)
    "reverse_kl"   KL(q || p)
    "jsd"          beta KL(p || m) + (1 - beta) KL(q || m),  m = beta p + (1 - beta) q: generalised Jensen-Shannon,
                   which goes to 0 as beta goes to 0 or 1

Values are float32 (float64 for float64 logits) and never negative. Derivative with respect to a student logit, with g
the gradient of the row's value; the teacher gets none:

    "kl"           g (q - p) / temperature
    "reverse_kl"   g q (log(q / p) - KL(q || p)) / temperature
    "jsd"          g (1 - beta) q (log(q / m) - KL(q || m)) / temperature

Logits of -inf are classes that can't occur: where p = 0 (or q = 0) the term p log(p / q) (q log(q / p)) is 0; a class
with p > 0 and q = 0 makes KL(p || q) infinite, as the definition says, and concerns no other row. A row is dead, value
and gradient 0, if `ignore` says so (whatever its logits) or if all logits of student or teacher are -inf: there is no
distribution.

Logits lie as (outer, classes, inner): inner = 1 are rows in memory, inner > 1 classes that are planes, such as the
channels of a mask. Bytes, with S the size of the student's logits: forward reads 2 S (jsd reads a row again, behind
the sums that normalise it, from a cache where one holds it) and writes up to 6 numbers per row: the value and, for
backward, maximum and log-sum-exp of both networks and KL(q || .). Backward reads 2 S and writes S.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import shapes
from ..contract import op

KINDS = ("kl", "reverse_kl", "jsd")


def divergence(
    student: Tensor,
    teacher: Tensor,
    *,
    kind: str = "kl",
    beta: float = 0.5,
    temperature: float = 1.0,
    dim: int = -1,
    ignore: Tensor | None = None,
) -> Tensor:
    """Divergence of each row of two logit tensors (the definition is at the top of this module).

    student       logits of any shape; float32, float64, bfloat16 or float16. Read as they lie if they are contiguous,
                  or channels_last with dim=1; another layout costs a copy.
    teacher       logits of the same shape; detached. Where dtypes differ, both are read in the one that holds both.
    kind          "kl", "reverse_kl" or "jsd".
    beta          the teacher's share in jsd, 0 to 1.
    temperature   divides the logits. The values are not multiplied by its square: losses do that. Where beta or the
                  temperature change, compiled code does not depend on their values.
    dim           the axis of the classes.
    ignore        bool, of the logits' shape without `dim`: rows that are true are 0 and get no gradient, whatever their
                  logits, NaN included.

    Returns values of the logits' shape without `dim`. Raises TypeError or ValueError that names the argument.
    """
    dim = _check(student, teacher, dim)
    index = check_kind(kind)
    beta, temperature = check_options(beta, temperature)
    shape = student.shape[:dim] + student.shape[dim + 1 :]
    ignore = _check_ignore(ignore, shape, student.device)
    dtype = torch.promote_types(student.dtype, teacher.dtype)
    student, teacher = student.to(dtype), teacher.detach().to(dtype)
    if not student.is_contiguous() and student.movedim(dim, -1).is_contiguous():
        student, teacher, dim = student.movedim(dim, -1), teacher.movedim(dim, -1), student.dim() - 1
    sizes = math.prod(student.shape[:dim]), student.shape[dim], math.prod(student.shape[dim + 1 :])
    student, teacher = student.reshape(sizes), teacher.reshape(sizes)
    options = None
    if shapes.changing(beta, temperature):
        options = torch.stack([shapes.scalar(x, torch.device("cpu"), torch.float64) for x in (beta, temperature)])
        beta, temperature = 0.5, 1.0
    return _divergence(student, teacher, ignore, index, beta, temperature, options).reshape(shape)


def check_kind(kind: str) -> int:
    """The position of `kind` in KINDS. Raises ValueError if it is none of them."""
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(map(repr, KINDS))}, got {kind!r}")
    return KINDS.index(kind)


def check_options(beta: float, temperature: float) -> tuple[float, float]:
    """Both as floats. Raises ValueError unless 0 <= beta <= 1 and temperature is positive and finite."""
    if not 0 <= beta <= 1:
        raise ValueError(f"beta: expected a number from 0 to 1, got {beta!r}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: expected a positive number, got {temperature!r}")
    return float(beta), float(temperature)


def _check(student: Tensor, teacher: Tensor, dim: int) -> int:
    """`dim`, counted from the front. Raises TypeError or ValueError unless these are logits of one shape."""
    for name, x in (("student", student), ("teacher", teacher)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: expected a tensor of logits, got {type(x).__name__}")
        if x.dtype not in shapes.FEATURE_DTYPES:
            raise TypeError(f"{name}: expected float32, float64, bfloat16 or float16, got {x.dtype}")
        if x.layout != torch.strided:
            raise TypeError(f"{name}: expected a dense tensor, got layout {x.layout}")
    if teacher.shape != student.shape:
        raise ValueError(f"teacher: expected shape {tuple(student.shape)} as student, got {tuple(teacher.shape)}")
    if teacher.device != student.device:
        raise ValueError(f"teacher: expected device {student.device} as student, got {teacher.device}")
    if not isinstance(dim, int) or not -student.dim() <= dim < student.dim():
        raise ValueError(f"dim: expected an axis of the logits {tuple(student.shape)}, got {dim!r}")
    dim %= student.dim()
    if student.shape[dim] == 0:
        raise ValueError(f"student: expected at least one class, got shape {tuple(student.shape)} with dim {dim}")
    return dim


def _check_ignore(ignore: Tensor | None, shape: torch.Size, device: torch.device) -> Tensor | None:
    if ignore is None:
        return None
    if not isinstance(ignore, Tensor) or ignore.dtype != torch.bool:
        got = ignore.dtype if isinstance(ignore, Tensor) else type(ignore).__name__
        raise TypeError(f"ignore: expected a bool tensor, got {got}")
    if ignore.shape != shape:
        raise ValueError(f"ignore: expected shape {tuple(shape)}, one per row of logits, got {tuple(ignore.shape)}")
    if ignore.device != device:
        raise ValueError(f"ignore: expected device {device}, got {ignore.device}")
    return ignore.reshape(-1)


def saved_rows(kind: int) -> int:
    """Numbers that forward saves per row: max and log-sum-exp of student and teacher, and KL(q || .) but for kl."""
    return 4 if KINDS[kind] == "kl" else 5


def numbers(beta: float, temperature: float, options: Tensor | None) -> tuple[float, float]:
    """beta and temperature as a kernel takes them: those given, unless `options`, on the host, holds both."""
    return (beta, temperature) if options is None else tuple(options.tolist())


def _forward_shapes(student, teacher, ignore, kind, beta, temperature, options, gradients):
    dtype, rows = shapes.accumulation_dtype(student.dtype), student.shape[0] * student.shape[2]
    saved = (saved_rows(kind), rows) if gradients else (0,)
    return student.new_empty((rows,), dtype=dtype), student.new_empty(saved, dtype=dtype)


def _backward_shapes(grad_values, student, teacher, saved, kind, beta, temperature, options):
    return student.new_empty(student.shape)


# options (2,) float64 on the CPU: beta and temperature where they change under torch.compile, which would compile again
# for each value of a float.
OPTIONS = "int kind, float beta, float temperature, Tensor? options"
_divergence = op(
    __name__,
    forward=f"(Tensor student, Tensor teacher, Tensor? ignore, {OPTIONS}, bool gradients)"
    " -> (Tensor values, Tensor saved)",
    backward=f"(Tensor grad_values, Tensor student, Tensor teacher, Tensor saved, {OPTIONS}) -> Tensor student",
    forward_shapes=_forward_shapes,
    backward_shapes=_backward_shapes,
    native=("cpu", "cuda"),
)
