"""`python -m benchmarks.losses`: every loss beside its published form in plain PyTorch and torch.compile of that.

All forms run in one process, interleaved, on the same inputs, forward + backward; the table shows medians, and ratios
of medians. First ours, by the options that make the published form, is compared with that form in float64: a wrong one
prints no time. Further columns:

    traffic   bytes that operators move, over the compulsory: student and teacher read once forward; the student read
              and its gradient written once backward (an operator that isn't a view reads its operands once and writes
              its results once; torch.compile's can't be counted this way)
    memory    MB at most beyond inputs and returned gradients; one feature is the largest single input
    error     of the gradient of ours, relative to float64 in the norm; of half precision at 2^16 times the loss, where
              GradScaler begins

--write keeps float32 results in abckd_kernels/losses/measured.json, and from it and the table writes docs/losses.md;
--page writes that page alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from abckd_kernels.losses.table import MEASURED, Entry, table

from . import losses_page
from .measuring import extra_memory, limit, machine, time_step, traffic
from .published import Case, case

ROOT = Path(__file__).parents[1]
ERROR_DTYPES = ("float32", "bfloat16", "float16")
TOLERANCE = 1e-6
SECONDS = 20  # that the turns of one loss may take; at least three are made


def measure(entry: Entry, found: Case, dtype: torch.dtype, repeats: int, errors: bool = True) -> dict:
    """The row of a loss."""
    check(entry, found)
    student, teacher = found.inputs(entry, dtype)
    forms, leaves = _forms(entry, found, dtype), {}
    for name, form in forms.items():
        leaves[name] = [*_list(student), *_parameters(form)]
        forms[name] = partial(form, student, teacher, **_extra(found, student, teacher))
    turns = _turns(forms, leaves, repeats)
    read = [*_list(student), *_list(teacher)]
    compulsory = sum(x.nbytes for x in read) + 2 * sum(x.nbytes for x in _list(student))
    row = {
        "dtype": str(dtype).removeprefix("torch."),
        "student": _shapes(student),
        "teacher": _shapes(teacher),
        "note": found.note,
        "milliseconds": {
            name: {"forward": statistics.median(a for a, _ in times), "total": statistics.median(b for _, b in times)}
            for name, times in turns.items()
        },
        "limit": limit(read, _list(student)),
        "traffic": {name: traffic(forms[name], leaves[name]) / compulsory for name in ("eager", "ours")},
        "compulsory_megabytes": compulsory / 1e6,
        "memory_megabytes": {name: extra_memory(forms[name], leaves[name]) / 1e6 for name in forms},
        "feature_megabytes": max(x.nbytes for x in read) / 1e6,
    }
    return row | (
        {"error": {name: error(entry, found, getattr(torch, name)) for name in _dtypes(entry)}} if errors else {}
    )


def check(entry: Entry, found: Case) -> None:
    """Ours is the published form in float64, where options say so; else ours in float32 is ours in float64.

    Raises SystemExit.
    """
    if found.convention is None or found.ours is not None:
        off, allowed = error(entry, found, torch.float32)["gradient"], 1e-3
        if not off < allowed:
            raise SystemExit(f"{entry.name}: the gradient is off by {off:.1e}, allowed {allowed:.1e}: nothing measured")
        return
    student, teacher = found.inputs(entry, torch.float64)
    extra = _extra(found, student, teacher)
    results = []
    for form in (partial(entry.function, **found.convention), found.published):
        loss = form(student, teacher, **extra)
        results.append([loss.detach(), *torch.autograd.grad(loss, _list(student))])
    for what, ours, theirs in zip(["loss", *["gradient"] * len(_list(student))], *results, strict=True):
        off = ((ours - theirs).norm() / theirs.norm()).item()
        if not off < TOLERANCE:
            raise SystemExit(f"{entry.name}: the {what} is off by {off:.1e}, allowed {TOLERANCE:.1e}: nothing measured")


def error(entry: Entry, found: Case, dtype: torch.dtype) -> dict[str, float]:
    """Relative error of loss and student gradient of ours to float64, and the share of zeros where that has none."""
    student, teacher = found.inputs(entry, dtype)
    ours = _ours(entry, found, dtype)
    exact_form = copy.deepcopy(ours).double() if isinstance(ours, nn.Module) else ours
    scale = 1.0 if dtype == torch.float32 else 2.0**16

    def results(form, student, teacher, scale):
        loss = form(student, teacher, **_extra(found, student, teacher))
        return loss, torch.cat([g.flatten() for g in torch.autograd.grad(loss * scale, _list(student))])

    loss, gradient = results(ours, student, teacher, scale)
    while not gradient.isfinite().all() and scale > 2.0**-16:
        scale /= 2
        loss, gradient = results(ours, student, teacher, scale)
    widened = [_widened(group) for group in (student, teacher)]
    exact, expected = results(exact_form, *widened, scale)
    gradient = gradient.to(expected.dtype)
    return {
        "loss": ((loss - exact).abs() / exact.abs()).item(),
        "gradient": ((gradient - expected).norm() / expected.norm()).item(),
        "zeros": ((gradient == 0) & (expected != 0)).double().mean().item(),
    }


def _forms(entry: Entry, found: Case, dtype: torch.dtype) -> dict[str, Callable]:
    published = found.published if found.ours is None else _made(found.published, dtype)
    torch._dynamo.reset()
    return {"eager": published, "compile": torch.compile(published), "ours": _ours(entry, found, dtype)}


def _ours(entry: Entry, found: Case, dtype: torch.dtype) -> Callable:
    return partial(entry.function, **found.options) if found.ours is None else _made(found.ours, dtype)


def _made(maker: Callable[[], Callable], dtype: torch.dtype) -> Callable:
    """What has learned parts, always the same."""
    torch.manual_seed(0)
    form = maker()
    return form.to(torch.promote_types(dtype, torch.float32)) if isinstance(form, nn.Module) else form


def _turns(forms: dict[str, Callable], leaves: dict[str, list[Tensor]], repeats: int) -> dict[str, list]:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in forms}
    for name, form in forms.items():  # compilation, and memory from the system
        for _ in range(2):
            time_step(form, leaves[name])
    start = time.perf_counter()
    for turn in range(repeats):
        if turn >= 3 and time.perf_counter() - start > SECONDS:
            break
        for name, form in forms.items():
            times[name].append(time_step(form, leaves[name]))
    return times


def _dtypes(entry: Entry) -> tuple[str, ...]:
    return ERROR_DTYPES[:1] if entry.inputs == "spectra" else ERROR_DTYPES


def _extra(found: Case, student, teacher) -> dict:
    return found.extra(student, teacher) if found.extra else {}


def _parameters(form: Callable) -> list[Tensor]:
    return list(form.parameters()) if isinstance(form, nn.Module) else []


def _list(x: Tensor | list[Tensor]) -> list[Tensor]:
    return [x] if isinstance(x, Tensor) else x


def _widened(x: Tensor | list[Tensor]):
    if isinstance(x, list):
        return [_widened(one) for one in x]
    dtype = torch.promote_types(x.dtype, torch.float64)
    return x.detach().to(dtype).requires_grad_(x.requires_grad)


def _shapes(x: Tensor | list[Tensor]) -> list:
    return list(x.shape) if isinstance(x, Tensor) else [list(one.shape) for one in x]


def main() -> None:
    names = [entry.name for entry in table()]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--loss", choices=names, action="append", help="which (repeatable; default: all)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], action="append", help="default: float32")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--write", action="store_true", help="keep the float32 rows in the library and write the page")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page of what was measured")
    options = parser.parse_args()
    if options.page:
        losses_page.PAGE.write_text(losses_page.page(table()))
        return

    place, rows = machine(), {}
    print(", ".join(f"{name} {value}" for name, value in place.items()) + "\n")
    print(losses_page.MEASURED_HEAD)
    for entry in table():
        found = case(entry.name)
        if entry.name not in (options.loss or names):
            continue
        if found is None:
            print(f"| {entry.name} | no published form in benchmarks/published |")
            continue
        for dtype in options.dtype or ["float32"]:
            row = measure(entry, found, getattr(torch, dtype), options.repeats)
            rows[f"{entry.name}, {dtype}"] = row
            print(losses_page.measured_row(entry.name, row), flush=True)
            if options.write and dtype == "float32":
                _write(entry.name, row | {"machine": place})
    if options.json:
        Path(options.json).write_text(json.dumps({"machine": place, "rows": rows}, indent=1))


def _write(name: str, row: dict) -> None:
    """Keep the row of a loss, and write the page anew."""
    kept = json.loads(MEASURED.read_text())["losses"] if MEASURED.exists() else {}
    kept[name] = _rounded(row)
    kept = {entry.name: kept[entry.name] for entry in table() if entry.name in kept}
    MEASURED.write_text(json.dumps({"losses": kept}, indent=1) + "\n")
    table.cache_clear()
    losses_page.PAGE.write_text(losses_page.page(table()))


def _rounded(x):
    """Three digits of numbers that a measurement gave."""
    if isinstance(x, dict):
        return {key: _rounded(value) for key, value in x.items()}
    return float(f"{x:.3g}") if isinstance(x, float) else x


if __name__ == "__main__":
    main()
