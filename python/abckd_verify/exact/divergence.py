"""The definition of divergence in NumPy float64, with its gradient in closed form; apart from the library."""

from __future__ import annotations

import numpy as np


def divergence(student, teacher, *, kind="kl", beta=0.5, temperature=1.0, dim=-1, ignore=None):
    """Values, of the logits' shape without `dim`, and their derivatives by the student's logits."""
    with np.errstate(all="ignore"):
        s, t = (np.moveaxis(np.asarray(x, float), dim, -1) for x in (student, teacher))
        log_q, dead_s = _log_softmax(s / temperature)
        log_p, dead_t = _log_softmax(t / temperature)
        dead = (dead_s | dead_t) if ignore is None else (dead_s | dead_t | np.asarray(ignore))
        p, q = np.exp(log_p), np.exp(log_q)
        if kind == "kl":
            values, slope = _kl(log_p, log_q), q - p
        elif kind == "reverse_kl":
            values = _kl(log_q, log_p)
            slope = _times(q, log_q - log_p - values[..., None])
        else:
            log_m = np.log(beta * p + (1 - beta) * q)
            of_student = _kl(log_q, log_m) if beta < 1 else np.zeros(dead.shape)
            values = (1 - beta) * of_student + (beta * _kl(log_p, log_m) if beta > 0 else 0)
            slope = (1 - beta) * _times(q, log_q - log_m - of_student[..., None]) if beta < 1 else np.zeros(q.shape)
        values = np.where(dead, 0, values)
        slope = np.where(dead[..., None], 0, slope / temperature)
    return values, np.moveaxis(slope, -1, dim)


def _log_softmax(x):
    largest = x.max(-1, keepdims=True)
    dead = (x == -np.inf).all(-1)
    shifted = x - np.where(dead[..., None], 0, largest)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)), dead


def _times(weight, x):
    return np.where(weight == 0, 0, weight * x)


def _kl(log_p, log_q):
    return _times(np.exp(log_p), log_p - log_q).sum(-1)
