"""Attention-map and cross-layer losses as their papers and published code define them: float64 NumPy, all frames valid.

Features are (B, C, *spatial); learned losses get their parameters by the names in the library's state dict.
"""

from __future__ import annotations

import itertools

import numpy as np
from naive_relations import normalised, pooled

BN_EPS = 1e-5


def on_grid(x, sizes):
    """A map (B, *spatial) averaged over the windows of adaptive pooling."""
    return pooled(x[:, None], sizes)[:, 0]


def unit_map(x):
    return normalised(x.reshape(len(x), -1))


def distances(s, t, distance="sum", sizes=None):
    """Per sample, of two maps on one grid."""
    sizes = [min(pair) for pair in zip(s.shape[1:], t.shape[1:], strict=True)] if sizes is None else sizes
    squared = ((unit_map(on_grid(s, sizes)) - unit_map(on_grid(t, sizes))) ** 2).sum(1)
    return {"sum": squared, "mean": squared / np.prod(sizes), "norm": np.sqrt(squared)}[distance]


def view(x, power, name):
    energy = np.abs(x) ** power
    if name == "channel":
        return energy.reshape(*x.shape[:2], -1).mean(2)
    maps = energy.mean(1)
    if name == "position" or (name == "time" and maps.ndim == 2):
        return maps
    return maps.mean({"time": 2, "frequency": 1}[name])


def at(s, t, power=2, distance="sum", views=("position",)):
    return np.mean([distances(view(s, power, v), view(t, power, v), distance).mean() for v in views])


# ---------------------------------------------------------------------------------------------- AFD


def afd(students, teachers, attention=None, distance="sum"):
    n, m = len(students), len(teachers)
    total = 0.0
    for (i, s), (j, t) in itertools.product(enumerate(students), enumerate(teachers)):
        share = 1 / n if attention is None else attention[:, i, j]
        per_sample = distances((s**2).mean(1), (t**2).mean(1), distance, t.shape[2:])
        total += (share * per_sample).mean() / m
    return total


def linear(x, parameters, name):
    return x @ parameters[f"{name}.weight"].T + parameters.get(f"{name}.bias", 0)


def batch_normalised(x, parameters, name, axes=(0,)):
    """By the statistics of the batch, over `axes`; vectors of a single row have the running ones."""
    shape = [1, -1, *[1] * (x.ndim - 2)]
    mean, variance = x.mean(axes), x.var(axes)
    if len(x) == 1 and x.ndim == 2:
        mean, variance = parameters[f"{name}.running_mean"], parameters[f"{name}.running_var"]
    bias = parameters.get(f"{name}.bias", np.zeros(x.shape[1]))
    y = (x - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + BN_EPS)
    return y * parameters[f"{name}.weight"].reshape(shape) + bias.reshape(shape)


def softmax(x, axis):
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def channel_mean(x):
    return x.reshape(*x.shape[:2], -1).mean(2)


def afd_learned(students, teachers, parameters):
    def layer(x, name):
        return batch_normalised(linear(x, parameters, f"{name}.linear"), parameters, f"{name}.norm")

    batch, n, m = len(students[0]), len(students), len(teachers)
    keys = [np.maximum(layer(channel_mean(x), f"keys.{i}"), 0) for i, x in enumerate(students)]
    dim = keys[0].shape[1]
    mixed = layer(np.stack(keys, 1).reshape(batch * n, dim), "key_mixer").reshape(batch, n, m, dim)
    queries = [layer(channel_mean(x), f"queries.{j}") for j, x in enumerate(teachers)]
    scores = np.zeros((batch, n, m))
    for b, i, j in itertools.product(range(batch), range(n), range(m)):
        positions = parameters["student_embedding"][i] @ parameters["teacher_embedding"][j]
        scores[b, i, j] = (mixed[b, i, j] @ queries[j][b] + positions) / np.sqrt(dim)
    return afd(students, teachers, softmax(scores, 1))


# ---------------------------------------------------------------------------------------------- SemCKD


def semckd(students, teachers, attention=None, project=lambda i, j, x: x):
    n, m = len(students), len(teachers)
    total = 0.0
    for (i, s), (j, t) in itertools.product(enumerate(students), enumerate(teachers)):
        sizes = [min(pair) for pair in zip(s.shape[2:], t.shape[2:], strict=True)]
        error = (project(i, j, pooled(s, sizes)) - pooled(t, sizes)) ** 2
        share = 1 / m if attention is None else attention[:, i, j]
        total += (share * error.reshape(len(s), -1).mean(1)).mean() / n
    return total


def embedded(x, parameters, name):
    return normalised(linear(np.maximum(linear(x, parameters, f"{name}.0"), 0), parameters, f"{name}.2"))


def pointwise_convolution(x, weight, bias=0):
    return np.einsum("dc,bc...->bd...", weight.reshape(weight.shape[:2]), x) + np.reshape(
        bias, (-1, *[1] * (x.ndim - 2))
    )


def convolution_3x3(x, weight):
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    frames, bands = x.shape[2:]
    taps = itertools.product(range(3), range(3))
    return sum(
        np.einsum("dc,bctf->bdtf", weight[:, :, u, v], padded[:, :, u : u + frames, v : v + bands]) for u, v in taps
    )


def semckd_learned(students, teachers, parameters, batch_size=None):
    def summary(x):
        rows = x.reshape(len(x), -1)
        return channel_mean(x) if batch_size is None else rows @ rows.T

    def project(i, j, x):
        name = f"regressors.{i}.{j}"
        if f"{name}.weight" in parameters:
            return pointwise_convolution(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"])
        for layer, convolution in enumerate((pointwise_convolution, convolution_3x3)):
            x = convolution(x, parameters[f"{name}.convolutions.{layer}.weight"])
            x = np.maximum(batch_normalised(x, parameters, f"{name}.norms.{layer}", (0, 2, 3)), 0)
        return pointwise_convolution(x, parameters[f"{name}.convolutions.2.weight"])

    queries = np.stack([embedded(summary(x), parameters, f"queries.{i}") for i, x in enumerate(students)], 1)
    keys = np.stack([embedded(summary(x), parameters, f"keys.{j}") for j, x in enumerate(teachers)], 1)
    return semckd(students, teachers, softmax(queries @ keys.transpose(0, 2, 1), 2), project)
