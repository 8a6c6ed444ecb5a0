"""Losses on the B x B relations between the samples of a batch: SP, PKT, HKD, RKD, IRG, CC.

All take features of any shape (B, C, *spatial), flattened to one row per sample, or vectors (B, D); student and
teacher may differ in everything but the batch. They need one Gram matrix of each feature (`_gram.py`):
forward reads S and T once, backward reads S once more and writes its gradient. With `group` the batch is that of all
processes of the group (`features.gather`).

Every function takes, beside its own options,

student_features   a feature or a list of n, float32, float64, bfloat16 or float16.
teacher_features   as many; detached.
lengths            (B,) integers: valid frames; later ones are zero for all that follows.
padded_length      the frames to which lengths refer; default: T of the feature with most.
weights            n numbers; default 1/n.
group              a torch.distributed process group; None: this process's batch alone.

returns a scalar in float32 (float64 if a feature is), and raises TypeError or ValueError that names the argument.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..common.arithmetic import inverse, root, wide
from ..common.checks import both_or_neither
from ..common.features import (
    batch_mean,
    check_equal,
    each_pair,
    flat,
    gather,
    pairs,
    weighted,
    without_autocast,
)
from ..common.modules import Configured, module
from ..common.options import Convention, Finite, Limits, NotNegative, check_options
from ._gram import between_differences, between_samples, cosines, eye, row_divergence, squared_distances

Features = Tensor | Sequence[Tensor]
ANGLES = 2**21  # angles computed at once; more are taken in blocks that backward recomputes


def sp_loss(
    student_features: Features,
    teacher_features: Features,
    *,
    normalize: Literal["l2", "l1"] = "l2",
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
    group=None,
) -> Tensor:
    """Similarity-preserving distillation (Tung and Mori, ICCV 2019); arguments as in this module.

    G = X Xᵀ, R its rows scaled to norm 1, L = ||R_s - R_t||_F^2 / B^2; at least 0, at most 4 / B.

    normalize   "l2": the paper and most code. "l1": rows scaled to sum |.| = 1, as torchdistill's SPKDLoss does.

    The row of a silent sample is zero and has no gradient; published code divides there by 1e-12, which makes gradients
    of 1e10.
    """
    check_options(sp_loss, normalize=normalize)

    def rows(x):
        g = between_samples(x)
        norm = root(g.square().sum(1, keepdim=True)) if normalize == "l2" else g.abs().sum(1, keepdim=True)
        return g * inverse(norm)

    def term(s, t, _):
        difference = rows(gather(s, group)) - rows(gather(t, group))
        return difference.square().sum() / max(len(difference), 1) ** 2

    return each_pair(term, student_features, teacher_features, lengths, padded_length, weights, vectors=True)


def _divergence(student: Tensor, teacher: Tensor, kind: str, eps: float, convention: str) -> Tensor:
    """paper: rows without the diagonal, mean over rows. published: with it, mean over all B^2 entries."""
    size = max(len(student), 1)
    if convention == "paper":
        return row_divergence(student, teacher, kind, eps, ~eye(student)).sum() / size
    return row_divergence(student, teacher, kind, eps).sum() / size**2


def pkt_loss(
    student_features: Features,
    teacher_features: Features,
    *,
    convention: Convention = "paper",
    eps: NotNegative = 1e-7,
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
    group=None,
) -> Tensor:
    """Probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018) with the cosine kernel; arguments as in this
    module.

    K_ij = (cos(x_i, x_j) + 1) / 2, p_ij = K_ij / sum_k K_ik, L = 1/B sum_i KL(p_i of the teacher || of the student).

    convention   "paper": j and k run over the other samples, mean of the rows' divergences (the paper has their sum).
                 "published": the sample itself counts, and the mean is over all B^2 entries, as in all code.
    eps          inside the logarithm; the published convention adds it to the norms, too.

    A silent sample has cosine zero to every sample and no gradient (published code gives it NaN). One sample, and in
    the paper's convention two, have no relations to compare: zero.
    """
    check_options(pkt_loss, convention=convention, eps=eps)
    added = eps if convention == "published" else 0.0

    def term(s, t, _):
        kernels = [(cosines(between_samples(gather(x, group)), added) + 1) / 2 for x in (s, t)]
        return _divergence(*kernels, "kl", eps, convention)

    return each_pair(term, student_features, teacher_features, lengths, padded_length, weights, vectors=True)


def hkd_loss(
    student_features: Features,
    teacher_features: Features,
    *,
    convention: Convention = "paper",
    eps: NotNegative = 1e-7,
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
    group=None,
) -> Tensor:
    """Heterogeneous distillation by information flow (Passalis, Tzelepi and Tefas, CVPR 2020); arguments as in this
    module.

    Jeffreys divergence sum_j (q - p)(log q - log p) of row-normalised kernels, as pkt_loss, summed over two kernels:
    (cos + 1) / 2 and Student's 1 / (1 + d), d the Euclidean distance.

    convention   as in pkt_loss; "published" also adds 1e-6 to norms and to squared distances, as SemCKD's HKDLoss.
    eps          inside the logarithms; SemCKD has none.

    The paper gives early layers and early epochs more weight: `weights`. (SemCKD's code means to, but gives 100 to the
    first layer and 1 to each other: weights=[100, 1, 1].)
    """
    check_options(hkd_loss, convention=convention, eps=eps)
    added = 1e-6 if convention == "published" else 0.0

    def term(s, t, _):
        angular, heavy = [], []
        for x in (s, t):
            differences, products = between_differences(gather(x, group))
            angular.append((cosines(products, added) + 1) / 2)
            heavy.append(1 / (1 + root(squared_distances(differences) + added)))
        return sum(_divergence(*kernels, "jeffreys", eps, convention) for kernels in (angular, heavy))

    return each_pair(term, student_features, teacher_features, lengths, padded_length, weights, vectors=True)


def rkd_loss(
    student_features: Features,
    teacher_features: Features,
    *,
    distance_weight: NotNegative = 25.0,
    angle_weight: NotNegative = 50.0,
    squared: bool = False,
    convention: Convention = "paper",
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
    group=None,
) -> Tensor:
    """Relational knowledge distillation (Park et al., CVPR 2019); arguments as in this module.

    D_ij = ||x_i - x_j|| / mu, mu its mean over pairs of different samples; psi_ijk = cos of the angle at x_i between
    x_j and x_k; h = smooth L1 with beta 1. L = distance_weight mean h(D_s - D_t) + angle_weight mean h(psi_s - psi_t).

    squared      D_ij = ||x_i - x_j||^2 / mu, an option of mdistiller.
    convention   "paper": means over pairs and triples of different samples. "published": over all B^2 and B^3, as in
                 all code, where D_ii = psi_iik = psi_iji = 0 and psi_ijj = 1; of two equal samples psi_ijj is 0.

    All from the Gram matrix G of the differences to the first sample, (x_j - x_i).(x_k - x_i) = G_jk - G_ij - G_ik
    + G_ii, never B x B x D. Equal samples have distance zero, angle zero and no gradient there. Fewer than two samples
    (three for angles) give zero; published code gives NaN.
    """
    check_options(
        rkd_loss, distance_weight=distance_weight, angle_weight=angle_weight, squared=squared, convention=convention
    )  # fmt: skip

    def term(s, t, _):
        grams = [between_differences(gather(x, group))[0] for x in (s, t)]
        size, total = len(grams[0]), 0.0
        distances = [squared_distances(g) for g in grams]
        lengths = [root(d) for d in distances]
        if distance_weight:
            scaled = [d * inverse(d.sum() / max(size * (size - 1), 1)) for d in (distances if squared else lengths)]
            count = size**2 if convention == "published" else size * (size - 1)
            total = total + distance_weight * _smooth_l1(scaled[0] - scaled[1]) / max(count, 1)
        if angle_weight:
            count = size**3 if convention == "published" else size * (size - 1) * (size - 2)
            total = total + angle_weight * _angle_sum(*grams, *map(inverse, lengths), convention) / max(count, 1)
        return grams[0].new_zeros(()) + total

    return each_pair(term, student_features, teacher_features, lengths, padded_length, weights, vectors=True)


def _smooth_l1(x: Tensor) -> Tensor:
    return nn.functional.smooth_l1_loss(x, torch.zeros_like(x), reduction="sum")


def _angle_sum(
    student: Tensor, teacher: Tensor, student_scale: Tensor, teacher_scale: Tensor, convention: str
) -> Tensor:
    """sum_ijk h(psi_s - psi_t), over blocks of corners i; j = k counts nothing, or as convention="published" has it."""
    size = len(student)
    block = max(ANGLES // max(size, 1) ** 2, 1)

    def part(student, teacher, student_scale, teacher_scale, first):
        corner = slice(first, first + block)
        same = eye(student)
        angles = []
        for g, scale in ((student, student_scale), (teacher, teacher_scale)):
            at = g[corner]
            dots = g - at[:, :, None] - at[:, None, :] + g.diagonal()[corner, None, None]
            angle = dots * scale[corner, :, None] * scale[corner, None, :]
            itself = (scale[corner, :, None] > 0).to(g.dtype) if convention == "published" else 0
            angles.append(torch.where(same, itself, angle))
        return _smooth_l1(angles[0] - angles[1])

    arguments = student, teacher, student_scale, teacher_scale
    if block >= size:
        return part(*arguments, 0)
    return sum(checkpoint(part, *arguments, first, use_reentrant=False) for first in range(0, size, block))


def irg_loss(
    student_features: Features,
    teacher_features: Features,
    *,
    vertex_weight: NotNegative = 0.0,
    edge_weight: NotNegative = 1.0,
    transform_weight: NotNegative = 1.0,
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
    group=None,
) -> Tensor:
    """Instance relationship graph (Liu et al., CVPR 2019); arguments as in this module.

    Edges E_ij = ||x_i - x_j||^2 / max, vertices x_i. For each pair of features edge_weight mean (E_s - E_t)^2 +
    vertex_weight mean (x_s - x_t)^2, the latter over samples and each one's valid positions, weighted by `weights`; and
    between consecutive features k, k + 1 of the lists transform_weight times the mean over k of (c_s - c_t)^2,
    c = mean (E_k - E_k+1)^2 the change of the edges.

    vertex_weight   default 0, because it needs equal shapes. (SemCKD adds it, unasked, wherever shapes agree.)

    Vertices of consecutive layers are not compared (the paper's vertex transformation): they need equal shapes
    throughout, which hint losses serve better.
    """
    check_options(
        irg_loss, vertex_weight=vertex_weight, edge_weight=edge_weight, transform_weight=transform_weight
    )  # fmt: skip
    found, padding = pairs(student_features, teacher_features, lengths, padded_length, vectors=True)
    edges, losses = [], []

    def graph(x):
        e = squared_distances(between_differences(gather(x, group))[0])
        return e * inverse(e.amax()) if len(e) else e

    for index, (s, t) in enumerate(found):
        edges.append((graph(s), graph(t)))
        losses.append(edge_weight * _mean_square(edges[-1][0] - edges[-1][1]))
        if vertex_weight:
            check_equal(index, "shape", tuple(s.shape), tuple(t.shape))
            squares = flat(wide(s) - wide(t)).square().sum(1)
            vertices = squares / (s.shape[1] * padding.positions(s))
            losses[-1] = losses[-1] + vertex_weight * batch_mean(gather(vertices, group))
    total = weighted(losses, weights, found)
    if transform_weight and len(edges) > 1:
        changes = [
            _mean_square(s - s_next) - _mean_square(t - t_next)
            for (s, t), (s_next, t_next) in zip(edges, edges[1:], strict=False)
        ]
        total = total + (transform_weight * torch.stack(changes).square().mean()).to(total.dtype)
    return total


def _mean_square(x: Tensor) -> Tensor:
    return x.square().sum() / max(x.numel(), 1)


def cc_loss(
    student_features: Features,
    teacher_features: Features,
    *,
    kernel: Literal["gaussian", "linear", "neighbour"] = "gaussian",
    gamma: Finite = 0.4,
    order: Annotated[int, Limits(whole=True)] = 2,
    normalize: bool = True,
    squared: bool = True,
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
    group=None,
) -> Tensor:
    """Correlation congruence (Peng et al., ICCV 2019); arguments as in this module.

    L = ||K_s - K_t||_F^2 / B^2, K a kernel matrix of the samples.

    kernel      "gaussian": exp(-gamma ||x - y||^2) of unit vectors, by its Taylor polynomial
                e^(-2 gamma) sum_p<=order (2 gamma)^p / p! (x.y)^p. "linear": x.y, the paper's bilinear one.
                "neighbour": not a kernel but what RepDistiller and SemCKD compute in its place, the mean over b < B - 1
                of d_b . d_b+1, d = |x_s - x_t|; it needs equal sizes (CCLoss embeds to one) and depends on the order of
                the batch.
    normalize   scale each sample to norm 1 first, which the Taylor polynomial presumes. torchdistill does not.
    squared     False: ||K_s - K_t||_F / B^2, as torchdistill's CCKDLoss.
    """
    check_options(cc_loss, kernel=kernel, gamma=gamma, order=order, normalize=normalize, squared=squared)

    def term(s, t, _):
        return _of_vectors(
            s, t, kernel=kernel, gamma=gamma, order=order, normalize=normalize, squared=squared, group=group
        )  # fmt: skip

    equal = ("size",) if kernel == "neighbour" else ()
    return each_pair(
        term, student_features, teacher_features, lengths, padded_length, weights, vectors=True, equal=equal
    )  # fmt: skip


def _congruence(kernel: str, gamma: float, order: int, normalize: bool):
    """The kernel matrix of cc_loss, of samples."""

    def matrix(x):
        g = cosines(between_samples(x)) if normalize else between_samples(x)
        if kernel == "linear":
            return g
        terms = [(2 * gamma) ** p / math.factorial(p) * g**p for p in range(order + 1)]
        return math.exp(-2 * gamma) * sum(terms)

    return matrix


def _neighbours(s: Tensor, t: Tensor) -> Tensor:
    difference = (wide(flat(s)) - wide(flat(t))).abs()
    return (difference[:-1] * difference[1:]).sum() / max(len(s) - 1, 1)


def _apart(difference: Tensor, squared: bool) -> Tensor:
    total = difference.square().sum()
    return (total if squared else root(total)) / max(len(difference), 1) ** 2


SPLoss = module(sp_loss, "SPLoss")
PKTLoss = module(pkt_loss, "PKTLoss")
HKDLoss = module(hkd_loss, "HKDLoss")
RKDLoss = module(rkd_loss, "RKDLoss")
IRGLoss = module(irg_loss, "IRGLoss")


class CCLoss(Configured, function=cc_loss):
    """cc_loss, optionally of learned linear embeddings of both networks.

    student_dim, teacher_dim   sizes of the vectors to embed, of one pair; None: no embedding.
    dim                        size of the embeddings.
    options                    as in cc_loss.

    With embeddings the features are one pair of vectors (B, D), or of features (B, C, *spatial) whose mean over the
    valid positions (B, C) is embedded, so that no spatial size is learned. The teacher's embedding is trained, too, as
    in the published code.
    """

    def __init__(
        self, student_dim: int | None = None, teacher_dim: int | None = None, dim: int = 128, **options
    ):  # fmt: skip
        super().__init__(**options)
        sizes = both_or_neither("dim", student_dim, teacher_dim)
        self.embeddings = None
        if sizes is not None:
            if options.get("weights") is not None:
                raise ValueError("weights: expected None, the embeddings are of one pair of features")
            self.embeddings = nn.ModuleList(nn.Linear(size, dim) for size in sizes)

    def forward(self, student_features, teacher_features, *, lengths=None, padded_length=None):
        """The loss of these features; arguments as in cc_loss."""
        if self.embeddings is None:
            return super().forward(student_features, teacher_features, lengths=lengths, padded_length=padded_length)
        found, padding = pairs(student_features, teacher_features, lengths, padded_length, vectors=True)
        if len(found) != 1:
            raise ValueError(f"student_features: expected one feature for one embedding, got {len(found)}")
        vectors = []
        with without_autocast(found[0][0]):
            for name, x, embedding in zip(("student", "teacher"), found[0], self.embeddings, strict=True):
                if x.shape[1] != embedding.in_features:
                    raise ValueError(
                        f"{name}_features: expected {embedding.in_features} channels as in {name}_dim, got {x.shape[1]}"
                    )
                mean, weight, bias = padding.mean(x), wide(embedding.weight), wide(embedding.bias)
                vectors.append(nn.functional.linear(mean.to(weight.dtype), weight, bias))
            # The function detaches its teacher; this one's embedding learns.
            return _of_vectors(*vectors, **self.options).to(vectors[0].dtype)


def _of_vectors(
    s: Tensor, t: Tensor, *, kernel="gaussian", gamma=0.4, order=2, normalize=True, squared=True, group=None
) -> Tensor:  # fmt: skip
    s, t = gather(s, group), gather(t, group)
    if kernel == "neighbour":
        return _neighbours(s, t)
    matrix = _congruence(kernel, gamma, order, normalize)
    return _apart(matrix(s) - matrix(t), squared)
