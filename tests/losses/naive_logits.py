"""Losses on logits in NumPy, written from the published definitions, one row after another; classes along axis 1."""

import numpy as np


def rows(x):
    """(rows, classes)."""
    return np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def divergence(log_p, log_q):
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def logs(student, teacher, temperature):
    return log_softmax(rows(teacher) / temperature), log_softmax(rows(student) / temperature)


def kl(student, teacher, temperature=4.0, reverse=False, standardize=False, reduction="mean", **_):
    if standardize:
        student, teacher = (
            (x - x.mean(1, keepdims=True)) / (x.std(1, keepdims=True, ddof=1) + 1e-7) for x in (student, teacher)
        )
    p, q = logs(student, teacher, temperature)
    values = divergence(q, p) if reverse else divergence(p, q)
    return temperature**2 * values.sum() / (len(student) if reduction == "batchmean" else len(values))


def jsd(student, teacher, temperature=1.0, beta=0.5, convention="paper", **_):
    p, q = logs(student, teacher, temperature)
    if convention == "published" and beta in (0, 1):
        values = divergence(p, q) if beta == 0 else divergence(q, p)
    else:
        m = np.log(beta * np.exp(p) + (1 - beta) * np.exp(q))
        values = beta * divergence(p, m) + (1 - beta) * divergence(q, m)
    return temperature**2 * values.mean()


def dkd(student, teacher, labels, temperature=4.0, alpha=1.0, beta=8.0, **_):
    total, found = 0.0, list(zip(rows(student), rows(teacher), labels.reshape(-1), strict=True))
    for s, t, y in found:
        (log_q, log_p), others = (log_softmax(x / temperature) for x in (s, t)), np.arange(len(s)) != y
        binary = [np.log([np.exp(x[y]), np.exp(x[others]).sum()]) for x in (log_p, log_q)]
        rest = [log_softmax(x[others] / temperature) for x in (t, s)]
        total += alpha * divergence(*binary) + beta * divergence(*rest)
    return temperature**2 * total / len(found)


def linear_divergence(
    student, teacher, student_weight, teacher_weight, student_bias=0.0, teacher_bias=0.0, kind="kl", beta=0.5,
    temperature=1.0, reduction="rows", ignore=None, **_
):
    count = len(student)
    student, teacher = (x.reshape(-1, x.shape[-1]) for x in (student, teacher))
    q, p = (log_softmax(x / temperature) for x in (student @ student_weight.T + student_bias,
                                                   teacher @ teacher_weight.T + teacher_bias))
    if kind == "jsd":
        m = np.log(beta * np.exp(p) + (1 - beta) * np.exp(q))
        values = beta * divergence(p, m) + (1 - beta) * divergence(q, m)
    else:
        values = divergence(p, q) if kind == "kl" else divergence(q, p)
    total = temperature**2 * values.sum()
    return total / {"sum": 1, "batchmean": count}.get(reduction, len(values))


def correlation(x, y):
    x, y = x - x.mean(), y - y.mean()
    norms = np.linalg.norm(x), np.linalg.norm(y)
    constant = [n < 1e-14 for n in norms]
    return float(all(constant)) if any(constant) else (x @ y) / (norms[0] * norms[1])


def dist(student, teacher, beta=1.0, gamma=1.0, temperature=1.0, **_):
    p, q = (np.exp(x) for x in logs(student, teacher, temperature))
    inter = np.mean([correlation(*pair) for pair in zip(p, q, strict=True)])
    intra = np.mean([correlation(*pair) for pair in zip(p.T, q.T, strict=True)])
    return temperature**2 * (beta * (1 - inter) + gamma * (1 - intra))
