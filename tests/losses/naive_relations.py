"""The relational losses as their papers define them: float64 NumPy, loops, giant temporaries; apart from the library.

Features are (B, C, *spatial), all frames valid; lists are pairs by position.
"""

from __future__ import annotations

import math

import numpy as np

SILENT = 1e-12


def normalised(x, axis=-1, order=2):
    norm = (np.abs(x) ** order).sum(axis, keepdims=True) ** (1 / order)
    return np.where(norm > SILENT, x / np.where(norm > SILENT, norm, 1), 0)


def rows(x):
    return x.reshape(len(x), -1)


def pooling(cells, size, largest=False):
    return [slice(u * size // cells, -(-(u + 1) * size // cells)) for u in range(cells)]


def pooled(x, sizes, reduce=np.mean):
    for axis, cells in enumerate(sizes, start=2):
        windows = pooling(cells, x.shape[axis])
        x = np.stack([reduce(np.take(x, range(w.start, w.stop), axis), axis) for w in windows], axis)
    return x


def on_one_grid(s, t):
    sizes = [min(pair) for pair in zip(s.shape[2:], t.shape[2:], strict=True)]
    return pooled(s, sizes), pooled(t, sizes)


def sp(s, t, normalize="l2"):
    order = {"l2": 2, "l1": 1}[normalize]
    r = [normalised(rows(x) @ rows(x).T, order=order) for x in (s, t)]
    return ((r[0] - r[1]) ** 2).sum() / len(s) ** 2


def distance(x, y):
    return math.sqrt(((x - y) ** 2).sum())


def probabilities(kernel):
    """p[i][j], j != i."""
    kernel = kernel.copy()
    np.fill_diagonal(kernel, 0)
    return kernel / np.maximum(kernel.sum(1, keepdims=True), 1e-300)


def divergence(kernels, kind, eps):
    p, q = map(probabilities, kernels)
    logs = np.log(q + eps) - np.log(p + eps)
    return ((q if kind == "kl" else q - p) * logs).sum(1).mean()


def pkt(s, t, eps=1e-7):
    return divergence([(normalised(rows(x)) @ normalised(rows(x)).T + 1) / 2 for x in (s, t)], "kl", eps)


def hkd(s, t, eps=1e-7):
    total = divergence([(normalised(rows(x)) @ normalised(rows(x)).T + 1) / 2 for x in (s, t)], "jeffreys", eps)
    heavy = [np.array([[1 / (1 + distance(a, b)) for b in rows(x)] for a in rows(x)]) for x in (s, t)]
    return total + divergence(heavy, "jeffreys", eps)


def smooth_l1(x):
    return np.where(np.abs(x) < 1, x**2 / 2, np.abs(x) - 0.5)


def rkd(s, t, distance_weight=25.0, angle_weight=50.0, squared=False):
    size = len(s)
    pairs = [(i, j) for i in range(size) for j in range(size) if i != j]
    triples = [(i, j, k) for i, j in pairs for k in range(size) if k not in (i, j)]
    d, psi = [], []
    for x in map(rows, (s, t)):
        each = np.array([distance(x[i], x[j]) ** (2 if squared else 1) for i, j in pairs])
        d.append(each / max(each.mean(), 1e-300) if pairs else each)
        psi.append(np.array([normalised(x[j] - x[i]) @ normalised(x[k] - x[i]) for i, j, k in triples]))
    terms = [smooth_l1(a - b).mean() if a.size else 0.0 for a, b in (d, psi)]
    return distance_weight * terms[0] + angle_weight * terms[1]


def irg(s, t, edge_weight=1.0, vertex_weight=0.0, **_):
    edges = []
    for x in map(rows, (s, t)):
        e = np.array([[distance(a, b) ** 2 for b in x] for a in x])
        edges.append(e / e.max() if e.max() > 0 else e)
    total = edge_weight * ((edges[0] - edges[1]) ** 2).mean()
    return total + (vertex_weight * ((s - t) ** 2).mean() if vertex_weight else 0)


def cc(s, t, kernel="gaussian", gamma=0.4, order=2, normalize=True):
    k = []
    for x in map(rows, (s, t)):
        g = normalised(x) @ normalised(x).T if normalize else x @ x.T
        series = sum((2 * gamma * g) ** p / math.factorial(p) for p in range(order + 1))
        k.append(g if kernel == "linear" else math.exp(-2 * gamma) * series)
    return ((k[0] - k[1]) ** 2).sum() / len(s) ** 2


def neighbour(s, t):
    d = np.abs(rows(s) - rows(t))
    return np.mean([d[b] @ d[b + 1] for b in range(len(d) - 1)]) if len(d) > 1 else 0.0


def nst(s, t, kernel="poly", bandwidth=None):
    total = 0
    for x, y in zip(*on_one_grid(s, t), strict=True):
        x, y = (normalised(a.reshape(len(a), -1)) for a in (x, y))
        between = bandwidth or (((x[:, None] - y[None]) ** 2).sum(-1)).mean()
        k = {
            "poly": lambda a, b: (a * b).sum(-1) ** 2,
            "linear": lambda a, b: (a * b).sum(-1),
            "gaussian": lambda a, b, v=between: np.exp(-((a - b) ** 2).sum(-1) / (2 * v)) if v else (a + b).sum(-1) * 0,
        }[kernel]
        means = [k(a[:, None], b[None]).mean() for a, b in ((x, x), (y, y), (x, y))]
        total += means[0] + means[1] - 2 * means[2]
    return total / len(s)


def flow(x, y, reduce):
    sizes = [min(pair) for pair in zip(x.shape[2:], y.shape[2:], strict=True)]
    x, y = (pooled(a, sizes, reduce).reshape(*a.shape[:2], -1) for a in (x, y))
    return (x[:, :, None] * y[:, None]).mean(-1)


def fsp(students, teachers, pooling="avg", distance="sum"):
    reduce, layers = {"avg": np.mean, "max": np.max}[pooling], []
    for i in range(len(students) - 1):
        d = flow(*students[i : i + 2], reduce) - flow(*teachers[i : i + 2], reduce)
        columns = np.sqrt((d**2).sum(1)).sum(1).mean()
        layers.append({"sum": (d**2).sum((1, 2)).mean(), "mean": (d**2).mean(), "columns": columns}[distance])
    return np.mean(layers)


def ickd(s, t):
    return np.mean([gram_distance(x.reshape(len(x), -1), y.reshape(len(y), -1)) for x, y in zip(s, t, strict=True)])


def gram_distance(x, y):
    r = [normalised(a @ a.T) for a in (x, y)]
    return ((r[0] - r[1]) ** 2).sum(1).mean()


def gram(s, t, axis="frames"):
    number = {"channels": 1, "frames": 2, "bands": 3}[axis]
    size = min(s.shape[number], t.shape[number])
    total = 0
    resized = []
    for x in (s, t):
        sizes = list(x.shape[2:])
        if number > 1:
            sizes[number - 2] = size
        resized.append(np.moveaxis(pooled(x, sizes), number, 1).reshape(len(x), size, -1))
    for x, y in zip(*resized, strict=True):
        total += gram_distance(x, y)
    return total / len(s)


def affinity(s, t, relation="channel", squared=False):
    total = 0
    for x, y in zip(*on_one_grid(s, t), strict=True):
        x, y = (a.reshape(len(a), -1) for a in (x, y))
        count = x.shape[1]
        if relation == "channel":
            x, y = normalised(x), normalised(y)
            a = x[:, :, None] * x[:, None], y[:, :, None] * y[:, None]
        else:
            x, y = normalised(x, 0), normalised(y, 0)
            a = (x.T @ x)[None], (y.T @ y)[None]
        norms = ((a[0] - a[1]) ** 2).sum((1, 2))
        total += (norms / count**2 if squared else np.sqrt(norms) / count).sum()
    return total / len(s)


def similarity(x, y, kind, eps):
    """Mean over rows of the divergence between the row-normalised cosines of the rows of x and y."""
    p, q = ((normalised(a) @ normalised(a).T + 1) / 2 for a in (x, y))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    logs = np.log(q + eps) - np.log(p + eps)
    return {"squared": (q - p) ** 2, "kl": q * logs, "jeffreys": (q - p) * logs}[kind].sum(1).mean()


def frames_of(s, t):
    size = min(s.shape[2], t.shape[2])
    return [np.moveaxis(pooled(x, [size, *x.shape[3:]]), 2, 1).reshape(len(x), size, -1) for x in (s, t)]


def time_similarity(s, t, divergence="jeffreys", eps=1e-7):
    return np.mean([similarity(x, y, divergence, eps) for x, y in zip(*frames_of(s, t), strict=True)])


def frame_similarity(s, t, divergence="jeffreys", eps=1e-7):
    x, y = frames_of(s, t)
    return np.mean([similarity(x[:, u], y[:, u], divergence, eps) for u in range(x.shape[1])])


def ickd_embedding(s, t, parameters):
    """The student through a 3x3 convolution and a batch normalisation by the statistics of the batch."""
    around = np.pad(s, ((0, 0), (0, 0), (1, 1), (1, 1)))
    x = np.zeros((len(s), len(parameters["embedding.weight"]), *s.shape[2:]))
    for b, d, u, v in np.ndindex(*x.shape):
        x[b, d, u, v] = (parameters["embedding.weight"][d] * around[b, :, u : u + 3, v : v + 3]).sum()
    mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    scale, shift = (parameters[f"normalisation.{name}"][:, None, None] for name in ("weight", "bias"))
    return ickd((x - mean) / np.sqrt(variance + 1e-5) * scale + shift, t)


def cc_embedding(s, t, parameters):
    """Correlation congruence of linear embeddings of the means over positions."""
    vectors = [
        x.reshape(*x.shape[:2], -1).mean(2) @ parameters[f"embeddings.{i}.weight"].T
        + parameters[f"embeddings.{i}.bias"]
        for i, x in enumerate((s, t))
    ]
    return cc(*vectors)
