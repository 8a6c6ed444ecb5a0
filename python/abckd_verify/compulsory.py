"""The fewest bytes that an op can move: what it needs is read once, what it gives is written once.

Features and maps are needed in valid frames only; an incoming gradient passes through padded frames too, and every
result is written in full. Arguments are the op's tensors; None counts nothing. GPU, CPU and meta tensors will do.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from abckd_kernels.ops.shapes import valid_frames


def tap_forward(features, maps, means, lengths: Tensor | None = None, padded_length: int = 0) -> int:
    """Read each feature; write its map and, where wanted, its channel means."""
    return _valid(features, 2, lengths, padded_length) + _whole([*maps, *means, lengths])


def tap_backward(
    grads, features, map_grads, mean_grads, results, lengths: Tensor | None = None, padded_length: int = 0
) -> int:
    """Read each feature and the gradients that arrive for it, its map and its means; write its gradient."""
    read = _valid(features, 2, lengths, padded_length) + _valid(map_grads, 1, lengths, padded_length)
    return read + _whole([*grads, *mean_grads, *results, lengths])


def compress_forward(maps, results, lengths: Tensor | None = None, padded_length: int = 0) -> int:
    """Read every map; write distances, attention and both gradients."""
    return _valid(maps, 1, lengths, padded_length) + _whole([*results, lengths])


def compress_backward(distance_grads, map_grads, results, lengths: Tensor | None = None) -> int:
    """Read the gradient on the grid and its factors; write the gradient of each map."""
    return _whole([distance_grads, map_grads, *results, lengths])


def spectral_forward(spectra, errors, lengths: Tensor | None = None, padded_length: int = 0) -> int:
    """Read both spectra, pairs (B, F, T, 2); write both errors of each sample."""
    return _valid(spectra, 2, lengths, padded_length) + _whole([*errors, lengths])


def spectral_backward(spectra, error_grads, result, lengths: Tensor | None = None, padded_length: int = 0) -> int:
    """Read both spectra and the gradients of both errors; write the student's gradient."""
    return _valid(spectra, 2, lengths, padded_length) + _whole([*error_grads, result, lengths])


def divergence_forward(student, teacher, values, saved) -> int:
    """Read both logits; write values and what backward needs of each row."""
    return _whole([student, teacher, values, saved])


def divergence_backward(value_grads, student, teacher, saved, result) -> int:
    """Read both logits, the rows' gradients and what forward saved; write the gradient of the student's logits."""
    return _whole([value_grads, student, teacher, saved, result])


def pointwise_forward(features, per_channel, sums, lengths: Tensor | None = None, padded_length: int = 0) -> int:
    """Read student, teacher and, where the kind has one, the third feature; write a sum per sample and channel."""
    return _valid(features, 2, lengths, padded_length) + _whole([per_channel, sums, lengths])


def pointwise_backward(
    grad, features, per_channel, results, lengths: Tensor | None = None, padded_length: int = 0
) -> int:
    """Read what forward read and the gradient of the sums; write the gradients of the student and of the third."""
    return _valid(features, 2, lengths, padded_length) + _whole([grad, per_channel, *results, lengths])


def project_forward(features, parameters, errors, lengths: Tensor | None = None, padded_length: int = 0) -> int:
    """Read student and teachers, weight, bias and attention; write an error per sample."""
    return _valid(features, 2, lengths, padded_length) + _whole([*parameters, errors, lengths])


def project_backward(grad, features, parameters, results, lengths: Tensor | None = None, padded_length: int = 0) -> int:
    """Read what forward read and the gradient of the errors; write those of student, weight, bias and attention."""
    return _valid(features, 2, lengths, padded_length) + _whole([grad, *parameters, *results, lengths])


def _whole(tensors: Iterable[Tensor | None]) -> int:
    return sum(x.nbytes for x in tensors if x is not None)


def _valid(tensors: Iterable[Tensor | None], axis: int, lengths: Tensor | None, padded_length: int) -> int:
    """Bytes of valid frames, which `axis` counts."""
    if lengths is None:
        return _whole(tensors)
    total = 0
    for x in tensors:
        if x is not None:
            bytes_per_frame = x.nbytes // (x.shape[0] * x.shape[axis])
            total += bytes_per_frame * int(valid_frames(lengths, x.shape[axis], padded_length).sum())
    return total
