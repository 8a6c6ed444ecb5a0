"""dots: how alike the channels of two features are, in one read of both and without a normalised copy of either.

For features x and y (B, C, *spatial) of one shape, with e = y - x and sums over the positions of each channel,

    dots[b, c] = (x.x, y.y, x.y, x.e, e.e, x.1, e.1)        (B, C, 7) float64

Everything is float64 from the products on. From these, what depends on the difference of two nearly equal channels
keeps its digits (x.x e.e - (x.e)^2 is x.x y.y - (x.y)^2 without its cancellation), and so does what depends on channels
of very different size. The last two are the sums, by which a mean comes off the others.

Derivative, with g (B, C, 7) the gradient of the products: both features' gradients combine x, e and 1,

    gx = (2 g_xx + g_xy - g_xe) x + (g_xy + g_xe - 2 g_ee) e + g_x1 - g_e1
    gy = (2 g_yy + g_xy + g_xe) x + (2 g_yy + 2 g_ee) e + g_e1

Bytes, with S the size of a feature: forward reads 2 S, backward reads 2 S and writes S for each gradient that is
needed. Contiguous features are read as they lie, other layouts cost a copy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import shapes
from ..contract import op


def dots(x: Tensor, y: Tensor) -> Tensor:
    """Products of the channels of two features of one shape (the definition is at the top of this module).

    x, y   (B, C, T), (B, C, T, F) or (B, C, H, W); float32, float64, bfloat16 or float16. Where dtypes differ, the
           narrower one is widened, which costs a copy.

    Returns (B, C, 7) float64: x.x, y.y, x.y, x.e, e.e with e = y - x, the sum of x, that of e.

    Raises TypeError or ValueError that names the argument.
    """
    shapes.check_feature(x, "x")
    shapes.check_feature(y, "y")
    if x.shape != y.shape:
        raise ValueError(f"y: expected shape {tuple(x.shape)} as of x, got {tuple(y.shape)}")
    if x.dtype != y.dtype:
        dtype = torch.promote_types(x.dtype, y.dtype)
        x, y = x.to(dtype), y.to(dtype)
    return _dots(x, y)


def factors(grad: Tensor) -> tuple[Tensor, Tensor]:
    """What x, e and 1 are multiplied by in the gradients of x and of y: (B, C, 3) each, of the products' (B, C, 7)."""
    xx, yy, xy, xe, ee, sum_x, sum_e = grad.unbind(-1)
    of_x = torch.stack((2 * xx + xy - xe, xy + xe - 2 * ee, sum_x - sum_e), -1)
    return of_x, torch.stack((2 * yy + xy + xe, 2 * yy + 2 * ee, sum_e), -1)


def _forward_shapes(x, y):
    return x.new_empty((*x.shape[:2], 7), dtype=shapes.matrix_dtype(x.device))


def _backward_shapes(grad_products, x, y, needed):
    return tuple(x.new_empty(x.shape if is_needed else (0,)) for is_needed in needed)


_dots = op(
    __name__,
    forward="(Tensor x, Tensor y) -> Tensor products",
    backward="(Tensor grad_products, Tensor x, Tensor y, bool[] needed) -> (Tensor x, Tensor y)",
    forward_shapes=_forward_shapes,
    backward_shapes=_backward_shapes,
    native=("cpu",),
)
