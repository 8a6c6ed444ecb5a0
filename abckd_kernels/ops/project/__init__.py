"""project: the squared error of a 1x1 projection against teachers, without storing the projection.

For a student s (B, Cs, *spatial), a weight W (Ct, Cs), teachers t_j (B, Ct, *spatial) and P valid positions in sample
b (see ops.shapes on padding):

    r[b, d, p] = sum_c W[d, c] s[b, c, p] + bias[d] - sum_j attention[b, j] t_j[b, d, p]
    error[b]   = sum_{p, d} r[b, d, p]^2                                                      (B,)

Errors, the parameters and sums are float32 (float64 for float64 features); half features are widened as they are read.

Derivative, with g the gradient of the errors: backward computes r once more, tile by tile, and gives

    gs = 2 g Wᵀ r,    gW = 2 sum_b g_b r sᵀ,    gbias = 2 sum_b g_b sum_p r,    gattention[b, j] = -2 g_b sum r t_j

and nothing for the teachers. Sums over tiles are partial sums in a workspace, added in a fixed order.

Bytes, with S and T the sizes of student and teachers: forward reads S and T; backward reads S and T, writes gs. What
autograd would keep, the projection and its error, are as large as a teacher and never leave the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import shapes
from ..contract import op

OPERANDS = (
    "Tensor student, Tensor weight, Tensor[] teachers, Tensor? bias, Tensor? attention, Tensor? lengths,"
    " SymInt padded_length"
)


def project(
    student: Tensor,
    weight: Tensor,
    teachers: Tensor | Sequence[Tensor],
    *,
    bias: Tensor | None = None,
    attention: Tensor | None = None,
    lengths: Tensor | None = None,
    padded_length: int | None = None,
) -> Tensor:
    """Per-sample squared error (B,) of a projected feature (the definition is at the top of this module).

    student         (B, Cs, T), (B, Cs, T, F) or (B, Cs, H, W); float32, float64, bfloat16 or float16. Contiguous and
                    channels_last are read as they lie, another layout costs a copy; so for the teachers.
    weight          (Ct, Cs), floating point, computed with in float32 (float64 if a feature is).
    teachers        one or a list of m, (B, Ct, *spatial) with the student's spatial sizes; never differentiated.
    bias            (Ct,) or None.
    attention       (B, m); None: one teacher, taken as it is.
    lengths         (B,) integers: valid frames.
    padded_length   the frames to which lengths refer; default: T.

    Returns float32, float64 if a feature is. Gradients reach student, weight, bias and attention.

    Raises TypeError or ValueError that names the argument.
    """
    teachers = [teachers] if isinstance(teachers, Tensor) else teachers
    shapes.check_feature(student, "student")
    shapes.check_features(teachers, "teachers")
    expected = (student.shape[0], teachers[0].shape[1], *student.shape[2:])
    for index, x in enumerate(teachers):
        if tuple(x.shape) != expected:
            raise ValueError(f"teachers[{index}]: expected shape {expected}, got {tuple(x.shape)}")
    _check_parameter("weight", weight, (expected[1], student.shape[1]), student)
    if bias is not None:
        _check_parameter("bias", bias, expected[1:2], student)
    if attention is not None:
        _check_parameter("attention", attention, (expected[0], len(teachers)), student)
    elif len(teachers) != 1:
        raise ValueError(f"attention: expected a tensor {(expected[0], len(teachers))} for several teachers, got None")
    padded_length = shapes.check_padded_length(student.shape[2] if padded_length is None else padded_length)
    lengths = shapes.check_lengths(lengths, expected[0], student.device)
    if any(x.dtype == torch.float64 for x in (student, *teachers)):
        student, *teachers = (x.double() for x in (student, *teachers))
    return _project(student, weight, [x.detach() for x in teachers], bias, attention, lengths, padded_length)


def _check_parameter(name: str, x: Tensor, shape: tuple[int, ...], student: Tensor) -> None:
    if not isinstance(x, Tensor) or x.dtype not in shapes.FEATURE_DTYPES:
        raise TypeError(
            f"{name}: expected a floating-point tensor {shape}, got {getattr(x, 'dtype', type(x).__name__)}"
        )
    if tuple(x.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(x.shape)}")
    if x.device != student.device:
        raise ValueError(f"{name}: expected device {student.device} as student, got {x.device}")


def _forward_shapes(student, weight, teachers, bias, attention, lengths, padded_length):
    return student.new_empty(student.shape[:1], dtype=shapes.accumulation_dtype(student.dtype))


def _backward_shapes(grad_errors, student, weight, teachers, bias, attention, lengths, padded_length, needed):
    batch, rows = student.shape[0], weight.shape[0]
    sizes = (weight.shape, (rows,), (batch, len(teachers)))
    accumulated = [
        grad_errors.new_empty(size if is_needed else (0,), dtype=shapes.accumulation_dtype(student.dtype))
        for size, is_needed in zip(sizes, needed[1:], strict=True)
    ]
    return shapes.empty_like(student) if needed[0] else student.new_empty(0), *accumulated


_project = op(
    __name__,
    forward=f"({OPERANDS}) -> Tensor errors",
    backward=f"(Tensor grad_errors, {OPERANDS}, bool[] needed)"
    " -> (Tensor student, Tensor weight, Tensor bias, Tensor attention)",
    forward_shapes=_forward_shapes,
    backward_shapes=_backward_shapes,
    native=("cpu",),
)
