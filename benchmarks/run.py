"""`python -m benchmarks.run`: time of the ops beside plain PyTorch and torch.compile of it, on the CPU.

All forms run in one process, interleaved, on the same inputs; the table shows medians, and ratios of medians. Results
are checked against float64 first: a wrong one prints no time. The limit is compulsory bytes over the bandwidth that a
plain read (forward) and a copy (backward) reach in the same process.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from abckd_kernels import abc_loss, compress, tap_all

from . import eager
from .measuring import STUDENT, TEACHER, limit, machine, time_step


@dataclass(frozen=True)
class Case:
    """ours, plain: functions of two lists of tensors to a scalar. inputs: makes the lists; the first gets gradients."""

    ours: Callable[[list[Tensor], list[Tensor]], Tensor]
    plain: Callable[[list[Tensor], list[Tensor]], Tensor]
    inputs: Callable[[torch.dtype], tuple[list[Tensor], list[Tensor]]]


def _layers(*shapes: tuple[int, ...]) -> Callable[[torch.dtype], list[Tensor]]:
    return lambda dtype: [torch.randn(shape).to(dtype) for shape in shapes]


def _tap(features: list[Tensor], _: list[Tensor]) -> Tensor:
    _, maps, means = tap_all(features)
    return sum(x.sum() for x in (*maps, *means))


CASES = {
    "abc_loss": Case(
        abc_loss, eager.abc_loss, lambda dtype: (_layers(*[STUDENT] * 3)(dtype), _layers(*[TEACHER] * 6)(dtype))
    ),
    "tap": Case(_tap, lambda x, _: eager.tap(x), lambda dtype: (_layers(*[STUDENT] * 3)(dtype), [])),
    "compress": Case(
        lambda s, t: compress(s, t)[0].sum(),
        eager.compress,
        lambda _: tuple([x.square() for x in _layers(*[(8, 200, 64)] * count)(torch.float32)] for count in (3, 6)),
    ),
}


def measure(case: Case, dtype: torch.dtype, repeats: int) -> dict:
    """Median milliseconds of forward and of forward + backward for each form, and the bandwidth limit of both."""
    torch.manual_seed(0)
    first, second = case.inputs(dtype)
    first = [x.requires_grad_() for x in first]
    _check(case, first, second)
    forms = {"eager": case.plain, "compile": torch.compile(case.plain), "ours": case.ours}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in forms}
    for turn in range(repeats + 3):
        for name, form in forms.items():
            forward, total = time_step(partial(form, first, second), first)
            if turn >= 3:
                times[name].append((forward, total))
    row = {
        name: {"forward": statistics.median(a for a, _ in steps), "total": statistics.median(b for _, b in steps)}
        for name, steps in times.items()
    }
    row["limit"] = limit([*first, *second], first)
    return row


def _check(case: Case, first: list[Tensor], second: list[Tensor]) -> None:
    exact = [x.detach().double().requires_grad_() for x in first]
    case.plain(exact, [x.double() for x in second]).backward()
    case.ours(first, second).backward()
    tolerance = 4 * torch.finfo(first[0].dtype).eps if first[0].dtype != torch.float32 else 1e-4
    for index, (x, expected) in enumerate(zip(first, exact, strict=True)):
        error = (x.grad.double() - expected.grad).norm() / expected.grad.norm()
        if not error < tolerance:
            raise SystemExit(
                f"the gradient of input {index} is off by {error:.1e}, allowed {tolerance:.1e}: nothing measured"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--op", choices=CASES, action="append", help="which (repeatable; default: all)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], action="append", help="default: both")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args()

    place = machine()
    print(", ".join(f"{name} {value}" for name, value in place.items()))
    print(f"student 3 x {STUDENT}, teacher 6 x {TEACHER}; forward + backward, median of {options.repeats}\n")
    print("| op | dtype | eager ms | compile ms | ours ms | eager / ours | compile / ours | ours / limit |")
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for op in options.op or CASES:
        for dtype in options.dtype or ("float32", "bfloat16"):
            if op == "compress" and dtype != "float32":
                continue  # maps are float32 whatever the features are
            times = measure(CASES[op], getattr(torch, dtype), options.repeats)
            plain, compiled, ours, limit = (times[name]["total"] for name in ("eager", "compile", "ours", "limit"))
            print(
                f"| {op} | {dtype} | {plain:.2f} | {compiled:.2f} | {ours:.2f} "
                f"| {plain / ours:.1f} | {compiled / ours:.2f} | {ours / limit:.2f} |",
                flush=True,
            )
            rows.append({"op": op, "dtype": dtype, "milliseconds": times, **place})
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
