"""dots: how alike the channels of two features are, in one read of both and without a normalised copy of either.

For features x and y (B, C, *spatial) of one shape, with e = y - x and sums over the positions of each channel,

    dots[b, c] = (x.x, y.y, x.y, x.e, e.e, x.1, e.1)        (B, C, 7) float64

Everything is float64 from the products on. From these, what depends on the difference of two nearly equal channels
keeps its digits (x.x e.e - (x.e)^2 is x.x y.y - (x.y)^2 without its cancellation), and so does what depends on channels
of very different size. The last two are the sums, by which a mean comes off the others.

Derivative: of x and of y it is, per channel, a number times x plus a number times e plus a number; both come from

    combined[b, c, p] = f[b, c, 0] x[b, c, p] + f[b, c, 1] e[b, c, p] + f[b, c, 2]

Bytes, with S the size of a feature: forward reads 2 S, backward reads 2 S and writes S. Contiguous features are read as
they lie, other layouts cost a copy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ... import backends
from .. import shapes

FORWARD = "(Tensor x, Tensor y) -> Tensor"
BACKWARD = "(Tensor factors, Tensor x, Tensor y) -> Tensor"


def dots(x: Tensor, y: Tensor) -> Tensor:
    """Products of the channels of two features of one shape (the definition is at the top of this module).

    x, y   (B, C, T), (B, C, T, F) or (B, C, H, W); float32, float64, bfloat16 or float16. Where dtypes differ, the
           narrower one is widened, which costs a copy.

    Returns (B, C, 7) float64: x.x, y.y, x.y, x.e, e.e with e = y - x, the sum of x, that of e. Second derivatives
    don't exist.

    Raises TypeError or ValueError that names the argument.
    """
    shapes.check_feature(x, "x")
    shapes.check_feature(y, "y")
    if x.shape != y.shape:
        raise ValueError(f"y: expected shape {tuple(x.shape)} as of x, got {tuple(y.shape)}")
    if x.dtype != y.dtype:
        dtype = torch.promote_types(x.dtype, y.dtype)
        x, y = x.to(dtype), y.to(dtype)
    return backends.kernel("dots_forward", x.device)(x, y)


def _forward_fake(x, y):
    return x.new_empty((*x.shape[:2], 7), dtype=shapes.matrix_dtype(x.device))


def _backward_fake(factors, x, y):
    return x.new_empty(x.shape)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    x, y = ctx.saved_tensors
    xx, yy, xy, xe, ee, sum_x, sum_e = grad.unbind(-1)
    factors = (
        (2 * xx + xy - xe, xy + xe - 2 * ee, sum_x - sum_e),
        (2 * yy + xy + xe, 2 * yy + 2 * ee, sum_e),
    )
    return tuple(
        backends.refuse_second_derivative(
            backends.kernel("dots_backward", x.device)(torch.stack(of_input, -1), x, y)
        ) if needed else None
        for of_input, needed in zip(factors, ctx.needs_input_grad, strict=True)
    )  # fmt: skip


backends.define("dots_forward", FORWARD, folder=__name__, function="forward", fake=_forward_fake, native=("cpu",))
backends.define("dots_backward", BACKWARD, folder=__name__, function="backward", fake=_backward_fake, native=("cpu",))
backends.differentiate("dots_forward", _backward, _setup_context)
