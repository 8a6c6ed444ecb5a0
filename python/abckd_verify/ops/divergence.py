"""divergence: definitions, cases and gates."""

from __future__ import annotations

import numpy as np
import torch

from abckd_kernels.ops.divergence import KINDS

from ..exact import divergence as oracle
from ..inputs import DTYPES
from ..spec import LIMIT, Case, Make, Spec, cases

SINGLE = (torch.float32,)


def arguments(
    make: Make, batch: int, rows, kind: str, ignored=False, beta: float = 0.5, temperature: float = 2.0
) -> dict:  # fmt: skip
    """rows: (classes, inner) of the logits (batch, classes, inner)."""
    return {
        "student": make.logits(batch, *rows),
        "teacher": make.logits(batch, *rows),
        "ignore": make.flags(batch * rows[1]) if ignored else None,
        "kind": KINDS.index(kind),
        "beta": beta,
        "temperature": temperature,
        "options": None,
    }


def exact(student, teacher, ignore, kind, beta, temperature, options):
    ignore = None if ignore is None else np.reshape(ignore, (len(student), -1))
    values, _ = oracle.divergence(
        student, teacher, kind=KINDS[kind], beta=beta, temperature=temperature, dim=1, ignore=ignore
    )
    return (values.reshape(-1),)


def plain(student, teacher, ignore, kind, beta, temperature, options):
    log_q, log_p = ((x / temperature).log_softmax(1) for x in (student, teacher))

    def kl(log_a, log_b):
        return (log_a.exp() * (log_a - log_b)).sum(1)

    if KINDS[kind] == "kl":
        values = kl(log_p, log_q)
    elif KINDS[kind] == "reverse_kl":
        values = kl(log_q, log_p)
    else:
        log_m = (beta * log_p.exp() + (1 - beta) * log_q.exp()).log()
        values = beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)
    values = values.flatten()
    return (values if ignore is None else values.masked_fill(ignore, 0),)


def gates(direction: str, case: Case) -> dict[str, float]:
    """jsd's forward reads its logits again behind the normalisers."""
    again = direction == "forward" and case.options["kind"] == "jsd"
    return {"unique_ratio" if again else "ratio": LIMIT}


SPEC = Spec(
    "divergence",
    arguments,
    exact,
    plain,
    cases=tuple(
        case
        for kind in KINDS
        for case in (
            *cases(f"{kind}, rows", DTYPES, batch=3, rows=(131, 1), kind=kind),
            *cases(f"{kind}, planes", DTYPES, batch=2, rows=(21, 37), kind=kind, ignored=True),
            *cases(f"{kind}, short rows", SINGLE, batch=9, rows=(10, 1), kind=kind, ignored=True),
            # As wide as a block: only here do all its warps share their normalisers.
            *cases(f"{kind}, vocabulary", SINGLE, batch=2, rows=(9001, 1), kind=kind),
            *cases(f"{kind}, one class", SINGLE, batch=2, rows=(1, 3), kind=kind),
        )
    ),
    compiled=tuple(
        case
        for kind, dtypes in (
            ("kl", (torch.float32, torch.bfloat16)), ("reverse_kl", (torch.float32, torch.float16)),
            ("jsd", (torch.float32, torch.float64, torch.bfloat16)),
        )
        for name, batch, rows in (
            ("vocabulary", 64, (50257, 1)), ("short rows", 4096, (10, 1)), ("mask", 2, (64, 200 * 64)),
        )
        for case in cases(f"{kind}, {name}", dtypes, batch=batch, rows=rows, kind=kind, ignored=kind != "kl")
    ),
    traffic=(
        *cases("rows", SINGLE, batch=1024, rows=(264, 1), kind="kl"),
        *cases("vocabulary kl", SINGLE, batch=8, rows=(50257, 1), kind="kl"),
        *cases("vocabulary jsd", SINGLE, batch=8, rows=(50257, 1), kind="jsd"),
        *cases("vocabulary reverse_kl", (torch.bfloat16,), batch=16, rows=(50264, 1), kind="reverse_kl"),
        *cases("mask kl", SINGLE, batch=2, rows=(64, 3200), kind="kl"),
        *cases("mask jsd", SINGLE, batch=2, rows=(64, 3200), kind="jsd"),
        *cases("mask reverse_kl", (torch.float16,), batch=2, rows=(128, 3200), kind="reverse_kl"),
        *cases("odd rows", (torch.bfloat16,), batch=1024, rows=(521, 1), kind="jsd"),
        *cases("odd mask", SINGLE, batch=2, rows=(66, 2043), kind="kl"),
    ),
    timed=(
        *cases("kl, vocabulary", DTYPES, rows=(32000, 1), kind="kl"),
        *cases("jsd, vocabulary", (torch.float32, torch.bfloat16), rows=(32000, 1), kind="jsd"),
        *cases("kl, mask", (torch.float32, torch.bfloat16), rows=(64, 200 * 64), kind="kl"),
    ),
    launches={
        "triton": ("forward_kernel", "backward_kernel"),
        "cuda": tuple(f"divergence_{part}_kernel" for part in ("rows", "planes", "rows_backward", "planes_backward")),
    },
    gates=gates,
    condition=lambda given: 4.0,
)  # fmt: skip
