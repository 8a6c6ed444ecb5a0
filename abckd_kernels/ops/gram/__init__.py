"""gram: inner products of all pairs of rows of a feature, whichever axis the rows are, as the feature lies in memory.

For a feature x (B, C, T), (B, C, T, F), or vectors (B, D), the rows of each group are, with all else as columns,

    axis                 groups   rows           columns
    samples              1        B samples      C T F
    channels             B        C channels     T F
    frames               B        T frames       C F
    samples_per_frame    T        B samples      C F

    G[g, r, s] = sum_k z[g, r, k] z[g, s, k]        (groups, rows, rows) float64

with z = x, or, shifted, z_0 = x_0 and z_r = x_r - x_0: distances of the rows are then differences of numbers of their
own size, not of the size of the features' mean, and the products of the rows themselves still follow from G
(losses/relations/_gram.py). Products are taken in float32 (float64 for float64 features) and summed over some hundred
columns in it, on a GPU some thousand, beyond that in float64.

Derivative, with M = dG + dGᵀ: gz = M z; shifted, gx_r = gz_r for r > 0 and gx_0 = gz_0 - sum_{r>0} gz_r.

Bytes, with S the size of the feature: forward reads S, backward reads S and writes S. No copy is made unless what the
columns put side by side is nowhere side by side in memory: channels of a channels_last feature, frames of one without
bands that is not channels_last.
"""

from __future__ import annotations

from torch import Tensor

from .. import shapes
from ..contract import op

AXES = ("samples", "channels", "frames", "samples_per_frame")


def gram(x: Tensor, axis: str = "samples", *, shifted: bool = False) -> Tensor:
    """Gram matrices of one feature (the definition is at the top of this module).

    x         (B, C, T), (B, C, T, F) or (B, C, H, W), or (B, D) for axis "samples"; float32, float64, bfloat16 or
              float16.
    axis      what the rows are: "samples", "channels", "frames" or "samples_per_frame".
    shifted   subtract a group's first row from the others.

    Returns (groups, rows, rows) float64.
    Raises TypeError or ValueError that names the argument.
    """
    if axis not in AXES:
        raise ValueError(f"axis: expected one of {', '.join(AXES)}, got {axis!r}")
    vectors = axis == "samples" and isinstance(x, Tensor) and x.dim() == 2
    shapes.check_feature(x[..., None] if vectors else x, "x")
    return _gram(x, axis, bool(shifted))


def size(x: Tensor, axis: str) -> tuple[int, int, int]:
    """(groups, rows, rows)."""
    batch, channels, frames = (*x.shape, 1)[:3]
    groups, rows = {
        "samples": (1, batch),
        "channels": (batch, channels),
        "frames": (batch, frames),
        "samples_per_frame": (frames, batch),
    }[axis]
    return groups, rows, rows


def laid_out(x: Tensor, axis: str) -> Tensor:
    """`x` as it lies if neighbours in a row of the axis are then neighbours in memory, else one copy."""
    if axis == "samples":
        return shapes.dense(x)
    if axis == "channels":
        return x.contiguous()
    if (x.dim() == 4 and x.shape[3] > 1) or shapes.is_channels_last(x):
        return shapes.dense(x)
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def _forward_shapes(x, axis, shifted):
    return x.new_empty(size(x, axis), dtype=shapes.matrix_dtype(x.device))


def _backward_shapes(grad_products, x, axis, shifted):
    return shapes.empty_like(laid_out(x, axis))


_gram = op(
    __name__,
    forward="(Tensor x, str axis, bool shifted) -> Tensor products",
    backward="(Tensor grad_products, Tensor x, str axis, bool shifted) -> Tensor x",
    forward_shapes=_forward_shapes,
    backward_shapes=_backward_shapes,
    native=("cpu",),
)
