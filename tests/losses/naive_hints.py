"""Pointwise hints as their formulas say, in NumPy float64: element by element where that is short enough to read.

`parameters` is the state dict of a module with learned parts; batch statistics are those of the batch.
"""

from __future__ import annotations

import numpy as np

# ---------------------------------------------------------------------------------------------- sizes


def pooled(x, sizes):
    """Adaptive average pooling: window u is floor(u n / a) .. ceil((u + 1) n / a)."""
    for axis, cells in enumerate(sizes, start=2):
        n = x.shape[axis]
        windows = [(u * n // cells, -(-(u + 1) * n // cells)) for u in range(cells)]
        x = np.stack([x.take(range(*window), axis).mean(axis) for window in windows], axis)
    return x


def on_one_grid(s, t):
    if s.ndim == 2:
        return s, t
    sizes = [min(pair) for pair in zip(s.shape[2:], t.shape[2:], strict=True)]
    return pooled(s, sizes), pooled(t, sizes)


# ---------------------------------------------------------------------------------------------- losses


def hint(s, t):
    s, t = on_one_grid(s, t)
    return ((s - t) ** 2).mean()


def cwd(s, t, temperature=1.0):
    s, t = on_one_grid(s, t)
    values = []
    for a, b in zip(s.reshape(-1, s[0, 0].size), t.reshape(-1, t[0, 0].size), strict=True):
        q, p = (np.exp((x - x.max()) / temperature) for x in (a, b))
        q, p = q / q.sum(), p / p.sum()
        values.append((p * np.log(p / q)).sum())
    return temperature**2 * np.mean(values)


def pkd(s, t, convention="paper"):
    s, t = on_one_grid(s, t)
    values = []
    for channel in range(s.shape[1]):
        x, y = (a[:, channel].ravel() for a in (s, t))
        values.append(1 - np.corrcoef(x, y)[0, 1])
    return np.mean(values) * ((x.size - 1) / x.size if convention == "published" else 1)


def ab(s, t, margin=1.0, reduction="mean"):
    s, t = on_one_grid(s, t)
    total = 0.0
    for a, b in zip(s.ravel(), t.ravel(), strict=True):
        total += max(0.0, margin - a) ** 2 if b > 0 else max(0.0, a + margin) ** 2
    return total / (s.size if reduction == "mean" else len(s))


def ofd(s, t, margins, reduction="mean"):
    s, t = on_one_grid(s, t)
    total = 0.0
    for c, m in enumerate(margins):
        for a, b in zip(s[:, c].ravel(), t[:, c].ravel(), strict=True):
            target = max(b, m)
            if b > 0 or a > target:
                total += (a - target) ** 2
    return total / (s.size if reduction == "mean" else len(s))


def pad(s, t, log_variances, eps=1e-6):
    sizes = on_one_grid(s, t)[0].shape[2:]
    log_variances = log_variances if s.ndim == 2 else pooled(log_variances, sizes)
    s, t = on_one_grid(s, t)
    return ((t - s) ** 2 / (eps + np.exp(log_variances)) + log_variances).mean()


def srd(s, t, power=4.0, convention="paper"):
    s, t = on_one_grid(s, t)
    d = np.abs(s - t) ** power
    if convention == "published":
        return np.log(d.sum())
    return np.mean([np.log(1 + sample.mean() / 1e-8) for sample in d])


def vid(s, t, scales, eps=1e-5):
    s, t = on_one_grid(s, t)
    total = 0.0
    for c, a in enumerate(scales):
        v = np.log(1 + np.exp(a)) + eps
        total += ((s[:, c] - t[:, c]) ** 2 / v + np.log(v)).sum()
    return total / s.size / 2


# ---------------------------------------------------------------------------------------------- learned parts


def linear(x, weight, bias=0.0):
    y = np.einsum("dc,bc...->bd...", weight, x)
    return y + np.reshape(bias, (-1, *[1] * (x.ndim - 2)))


def normalised(x, weight=1.0, bias=0.0, eps=1e-5):
    """Training: the batch's own statistics, biased variance."""
    rows = np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])
    y = (np.moveaxis(x, 1, -1) - rows.mean(0)) / np.sqrt(rows.var(0) + eps) * weight + bias
    return np.moveaxis(y, -1, 1)


def connected(s, parameters, name="layers.0"):
    get = lambda key: parameters.get(f"{name}.{key}")  # noqa: E731
    affine = {} if get("norm.weight") is None else {"weight": get("norm.weight"), "bias": get("norm.bias")}
    return normalised(linear(s, get("linear.weight")), **affine)


def vid_module(s, t, parameters):
    s, t = on_one_grid(s, t)
    for name in ("first", "second", "third"):
        s = linear(np.maximum(s, 0) if name != "first" else s, parameters[f"layers.0.{name}.weight"])
    return vid(s, t, parameters["layers.0.scale"])


def pad_module(s, t, parameters):
    s, t = on_one_grid(s, t)
    log_variances = connected(s, parameters, "layers.0.variance")
    if "layers.0.projection.weight" in parameters:
        s = linear(s, parameters["layers.0.projection.weight"], parameters["layers.0.projection.bias"])
    return pad(s, t, log_variances)


def srd_module(s, t, parameters, **options):
    s, t = on_one_grid(s, t)
    return srd(connected(s, parameters, "layers.0.student"), normalised(t), **options)


def ab_module(s, t, parameters, **options):
    s, t = on_one_grid(s, t)
    return ab(connected(s, parameters, "connected.layers.0"), t, **options)


def ofd_module(s, t, parameters, **options):
    s, t = on_one_grid(s, t)
    return ofd(connected(s, parameters), t, parameters["layers.0.margins"], **options)
