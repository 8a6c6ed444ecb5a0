"""Gram matrices that keep their digits, and the small arithmetic on them.

A Gram matrix of features (B, C T F) is a long sum; what a loss needs of it is often a difference of nearly equal
entries. So the op `gram` takes the products in float32 (float64 for float64) and adds blocks of them in float64; all
that follows is float64, on matrices that are small beside the features. Distances come from rows whose first one was
subtracted. Half precision is widened before anything else, autocast does not reach in here, and no epsilon is ever a
half number.

Traffic: forward reads x once; backward reads it once more and writes its gradient once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops.gram import gram
from ...ops.shapes import accumulation_dtype
from ..common.arithmetic import inverse, root, small
from ..common.features import without_autocast


def between_samples(x: Tensor) -> Tensor:
    """Products of the samples of a feature or of vectors, (B, B)."""
    return gram(x)[0]


def between_differences(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two matrices (B, B) from one read of x: the products of x_i - x_0, for whatever shifting all samples does not
    change; and the products of x_i themselves."""
    g = gram(x, shifted=True)[0]  # of x_0, x_1 - x_0, x_2 - x_0, ...
    if not len(g):
        return g, g
    others = (torch.arange(len(g), device=g.device) > 0).to(g.dtype)
    differences = g * others[:, None] * others
    with_first = g[0] * others
    return differences, differences + with_first[:, None] + with_first + g[0, 0]


def products(x: Tensor, y: Tensor) -> Tensor:
    """x yᵀ of the rows of (G, R, N) and (G, S, N), taken in float32 (float64 for float64); (G, R, S) float64."""
    with without_autocast(x):
        dtype = accumulation_dtype(torch.promote_types(x.dtype, y.dtype))
        return small(torch.bmm(x.to(dtype), y.to(dtype).mT))


def cosines(g: Tensor, eps: float = 0.0) -> Tensor:
    """Cosines of the rows of x from their Gram matrices (..., R, R); those of a silent row are zero.

    eps is added to each norm.
    """
    scale = inverse(root(g.diagonal(dim1=-2, dim2=-1)), eps)
    return g * scale[..., :, None] * scale[..., None, :]


def cross_cosines(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines within the channels of x, within those of y, and between them, of features on one grid."""
    within, other = gram(x, "channels"), gram(y, "channels")
    between = products(x.flatten(2), y.flatten(2))
    scales = [inverse(root(g.diagonal(dim1=-2, dim2=-1))) for g in (within, other)]
    return cosines(within), cosines(other), between * scales[0][:, :, None] * scales[1][:, None, :]


def squared_distances(g: Tensor) -> Tensor:
    """||x_i - x_j||^2 from the (centred) Gram matrix; never negative, the diagonal exactly zero."""
    norms = g.diagonal(dim1=-2, dim2=-1)
    d = (norms[..., :, None] + norms[..., None, :] - 2 * g).clamp_min(0)
    return d.masked_fill(eye(g), 0)


def eye(g: Tensor) -> Tensor:
    return torch.eye(g.shape[-1], dtype=torch.bool, device=g.device)


def row_divergence(student: Tensor, teacher: Tensor, kind: str, eps: float, valid: Tensor | None = None) -> Tensor:
    """Divergence of each row of two kernel matrices (..., R, R) >= 0, rows scaled to sum 1; (..., R).

    kind    "kl" sum_j q log(q / p); "jeffreys" sum_j (q - p) (log q - log p); "squared" sum_j (q - p)^2; p the
            student's, q the teacher's.
    eps     added to probabilities inside logarithms.
    valid   entries that exist, broadcastable; others count nowhere.
    """
    p, q = (_rows(k, valid) for k in (student, teacher))
    if kind == "squared":
        return (q - p).square().sum(-1)
    return ((q if kind == "kl" else q - p) * ((q + eps).log() - (p + eps).log())).sum(-1)


def _rows(k: Tensor, valid: Tensor | None) -> Tensor:
    if valid is not None:
        k = k.masked_fill(~valid, 0)
    return k * inverse(k.sum(-1, keepdim=True))
