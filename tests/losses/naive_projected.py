"""Hints behind learned layers as their formulas say, in NumPy float64: regressors, hierarchical context, factors.

`parameters` is the state dict of a module; batch statistics are those of the batch. Convolutions are sums over shifts.
"""

from __future__ import annotations

import itertools

import numpy as np
from naive_hints import on_one_grid, pooled

# ---------------------------------------------------------------------------------------------- layers


def matrix(x, weight, bias=None):
    y = np.einsum("dc,bcn->bdn", weight, x.reshape(*x.shape[:2], -1)).reshape(len(x), -1, *x.shape[2:])
    return y if bias is None else y + bias.reshape(-1, *[1] * (x.ndim - 2))


def convolved(x, weight, bias=None):
    """3x3 (or 3), zeros around."""
    edges = [(1, 1)] * (x.ndim - 2)
    padded = np.pad(x, [(0, 0), (0, 0), *edges])
    result = 0.0
    for shift in itertools.product(range(3), repeat=x.ndim - 2):
        window = tuple(slice(i, i + n) for i, n in zip(shift, x.shape[2:], strict=True))
        result = result + matrix(padded[(..., *window)], weight[(..., *shift)])
    return result if bias is None else result + bias.reshape(-1, *[1] * (x.ndim - 2))


def normalised(x, weight, bias, axes):
    """By mean and variance over the axes."""
    shape = (-1, *[1] * (x.ndim - 2))
    y = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
    return y * weight.reshape(shape) + bias.reshape(shape)


def batch_norm(x, weight, bias):
    return normalised(x, weight, bias, (0, *range(2, x.ndim)))


def leaky(x, slope):
    return np.where(x > 0, x, slope * x)


# ---------------------------------------------------------------------------------------------- regressors


def regressed(s, t, parameters, kind):
    s, t = on_one_grid(s, t)
    own = {name.removeprefix("regressed.layers.0."): value for name, value in parameters.items()}
    if kind == "linear":
        y = matrix(s, own["weight"], own["bias"])
    else:
        y = batch_norm(matrix(s, own["linear.weight"]), own["norm.weight"], own["norm.bias"])
    return (((np.maximum(y, 0) if kind == "relu" else y) - t) ** 2).mean()


# ---------------------------------------------------------------------------------------------- hierarchical context


def review(s, t, levels=(4, 2, 1), fit="smallest"):
    s, t = on_one_grid(s, t)
    d = s - t
    limit = d.shape[2] if fit == "frames" else min(d.shape[2:])
    total, weight, weights = (d**2).mean(), 1.0, 1.0
    for level in levels:
        if level < limit:
            weight /= 2
            total += weight * (pooled(d, [level] * (d.ndim - 2)) ** 2).mean()
            weights += weight
    return total / weights


def nearest(x, sizes):
    for axis, cells in enumerate(sizes, start=2):
        x = x.take([i * x.shape[axis] // cells for i in range(cells)], axis)
    return x


def fused(students, teachers, parameters, norm="batch"):
    """The mean of review over layers, of the fused student."""
    deeper, losses = None, []
    for i in reversed(range(len(students))):
        prefix = f"fusion.layers.{i}."
        own = {name.removeprefix(prefix): value for name, value in parameters.items() if name.startswith(prefix)}

        def normalise(x, name, own=own):
            if norm == "batch":
                return batch_norm(x, own[f"{name}.weight"], own[f"{name}.bias"])
            y = normalised(x, own[f"{name}.norm.weight"], own[f"{name}.norm.bias"], tuple(range(2, x.ndim)))
            return leaky(y, own[f"{name}.activation.weight"])

        x = normalise(matrix(students[i], own["reduce.linear.weight"]),
                      "reduce.norm" if norm == "batch" else "reduce.rectified")  # fmt: skip
        if deeper is not None:
            deeper = nearest(deeper, x.shape[2:])
            logits = matrix(x, own["attention.0.weight"], own["attention.0.bias"])
            share = 1 / (1 + np.exp(-logits - matrix(deeper, own["attention.1.weight"])))
            x = x * share[:, :1] + deeper * share[:, 1:]
        deeper = nearest(x, teachers[i].shape[2:])
        losses.append(review(normalise(convolved(deeper, own["expand.weight"]), "norm"), teachers[i]))
    return np.mean(losses)


# ---------------------------------------------------------------------------------------------- factors


def ft(s, t, normalize="map", power=2, p=1.0):
    s, t = on_one_grid(s, t)
    total = 0.0
    for x, y in zip(s, t, strict=True):
        if normalize == "map":
            x, y = ((np.abs(z) ** power).mean(0) for z in (x, y))
        difference = np.abs(x / np.sqrt((x**2).sum()) - y / np.sqrt((y**2).sum()))
        if normalize == "factor" and p != 1:
            total += (difference**p).sum() ** (1 / p)
        else:
            total += (difference**p).mean()
    return total / len(s)


def ft_module(s, t, parameters, **options):
    own = {
        kind: {name.split(".", 2)[2]: value for name, value in parameters.items() if name.startswith(kind)}
        for kind in ("translators", "paraphrasers")
    }
    x, y = s, t
    for i in range(3):
        translator, paraphraser = own["translators"], own["paraphrasers"]
        x = convolved(x, translator[f"convolutions.{i}.weight"])
        x = leaky(batch_norm(x, translator[f"norms.{i}.weight"], translator[f"norms.{i}.bias"]), 0.1)
        y = leaky(convolved(y, paraphraser[f"encoder.{i}.weight"], paraphraser[f"encoder.{i}.bias"]), 0.1)
    return ft(x, y, **options)
