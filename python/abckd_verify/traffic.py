"""`python -m abckd_verify.traffic`: bytes that the GPU kernels move over the fewest possible, counted without a GPU.

Triton's kernels are counted in Triton's interpreter, the CUDA kernels in the emulator. `moved` sums what
the elements of all loads and stores asked for. `unique` is what memory carries where the cache keeps what an op reads
again: distinct sectors of 32 bytes, namely all that its launches store and those that its hungriest launch loads; the
others load what that one loaded, or what they stored. The fewest possible: abckd_verify/compulsory.py.

Gates (--check), each at most 1.05 but for the last:
    moved / compulsory       divergence, pointwise, spectral and tap, both ways; cuda: also a whole step of abc_loss
                             (its taps take no means)
    unique / compulsory      compress, whose maps fit into the cache; project, whose weight and its gradient do; the
                             Jensen-Shannon divergence's forward, which reads its logits again behind the normalisers
    sectors / ideal sectors  cuda, on contiguous features; at most 2 where channels don't begin at multiples of 16
                             bytes, because a warp's stretch of a row then begins anywhere within a sector
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from abckd_kernels import use_backend

from . import ROOT, environment, markdown, traffic_cases
from .machines.interpreter_counter import NotCounted

EXIT_NOT_COUNTED = 3
BACKENDS = ("triton", "cuda")
LIMIT = 1.05
LIMIT_OF_UNALIGNED_SECTORS = 2.0
EMULATED = ("sectors", "ideal_sectors", "loaded", "loaded_by_16")
SERVED_BY = {"triton": "triton", "cuda": "cpu"}  # the emulator stands in for the CPU's own kernels
STEPS = {"forward": ("tap_forward", "compress_forward"), "backward": ("compress_backward", "tap_backward")}


def measure(backend: str, select: str = "") -> list[dict]:
    """Rows of one backend, for the cases whose name contains `select`, counted in a process of its own.

    A row has backend, op, kernel (of several: joined by " + "), id and case, dtype, layout, shape (of several layers:
    a list of them, of which the first `students` are the student's), means, lengths; moved, compulsory and unique
    bytes and their ratios; for cuda also sectors_over_ideal and share_16_byte, of the loaded bytes. A step's rows are
    those of its ops, then step_forward and step_backward, their sums.

    Raises NotCounted where there is nothing to count with, RuntimeError where the counting breaks.
    """
    settings = environment(ABCKD_BACKEND="auto", TRITON_INTERPRET="1" if backend == "triton" else "0")
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "abckd_verify.traffic", "--here", backend, "--select", select, "--json", rows]
        result = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True)
        if result.returncode == EXIT_NOT_COUNTED:
            raise NotCounted(result.stderr.strip())
        if result.returncode:
            raise RuntimeError(f"counting {backend} failed:\n{result.stderr[-4000:]}")
        return json.loads(rows.read_text())


def measure_here(backend: str, select: str = "") -> list[dict]:
    """As `measure`, in this process, which must have been started for that backend."""
    if backend == "triton":
        from .machines.interpreter_counter import counting
    else:
        from .machines import emulator_counter

        counting = functools.partial(emulator_counter.counting, emulator_counter.load())
    rows = []
    with use_backend(SERVED_BY[backend]):
        for case in traffic_cases.of(backend):
            if select not in str(case):
                continue
            ops = {}
            for op, work in traffic_cases.run(case):
                with counting() as counter:
                    fewest = work()
                ops[op] = _row(backend, op, case, counter.kernels, fewest)
            rows += ops.values()
            if case.kind == "step":
                rows += [_total(f"step_{name}", [ops[op] for op in parts]) for name, parts in STEPS.items()]
    return rows


def _row(backend: str, op: str, case: traffic_cases.Case, kernels: dict, fewest: int) -> dict:
    names = ("moved", *EMULATED) if backend == "cuda" else ("moved",)
    total = {name: sum(getattr(traffic, name) for traffic in kernels.values()) for name in names}
    total["unique"] = max(x.unique_loaded for x in kernels.values()) + sum(x.unique_stored for x in kernels.values())
    row = {"backend": backend, "op": op, "kernel": " + ".join(kernels), **case.describe, "compulsory": fewest, **total}
    return _with_ratios(row)


def _total(op: str, parts: list[dict]) -> dict:
    row = dict(parts[0], op=op, kernel=" + ".join(part["kernel"] for part in parts))
    for name in ("moved", "unique", "compulsory", *EMULATED):
        if name in row:
            row[name] = sum(part[name] for part in parts)
    return _with_ratios(row)


def _with_ratios(row: dict) -> dict:
    row["ratio"] = row["moved"] / row["compulsory"]
    row["unique_ratio"] = row["unique"] / row["compulsory"]
    if "sectors" in row:
        row["sectors_over_ideal"] = row["sectors"] / row["ideal_sectors"]
        row["share_16_byte"] = row["loaded_by_16"] / row["loaded"]
    return row


def gates(row: dict) -> dict[str, float]:
    """The row's ratios that are limited, and by what."""
    limits = {}
    if row["op"].startswith(("tap", "pointwise", "spectral")) or _is_step_of_abc_loss(row):
        limits["ratio"] = LIMIT
    if row["op"].startswith("divergence"):
        limits["unique_ratio" if row["op"].endswith("forward") and row["divergence"] == "jsd" else "ratio"] = LIMIT
    if row["op"].startswith(("compress", "project")):
        limits["unique_ratio"] = LIMIT
    if "sectors_over_ideal" in row and row["layout"] == "contiguous":
        limits["sectors_over_ideal"] = LIMIT if _rows_are_aligned(row) else LIMIT_OF_UNALIGNED_SECTORS
    return limits


def _rows_are_aligned(row: dict) -> bool:
    """True if every channel of every contiguous feature, and every map, begins at a multiple of 16 bytes."""
    item = getattr(torch, row["dtype"]).itemsize
    return all(shape[-1] * shape[-2] * size % 16 == 0 for shape in _shapes(row) for size in (item, max(item, 4)))


def _is_step_of_abc_loss(row: dict) -> bool:
    return row["op"].startswith("step") and row["backend"] == "cuda" and not row["means"]


def failures(rows: list[dict]) -> list[str]:
    """A sentence for each gate that a row fails."""
    return [
        f"{name_of(row)}: {gate} {row[gate]:.3f}, at most {limit}"
        for row in rows
        for gate, limit in gates(row).items()
        if not row[gate] <= limit
    ]


def name_of(row: dict) -> str:
    means = " with means" if row["means"] else ""
    return f"{row['backend']} {row['op']}, {row['case']}, {row['dtype']} {row['layout']}{means}"


def table(rows: list[dict]) -> str:
    """The rows in Markdown; a ratio above its gate is bold."""
    titles = ("backend", "op", "case", "shape", "dtype", "layout", "means", "moved MB", "moved / compulsory",
              "unique / compulsory", "sectors / ideal", "by 16 bytes", "kernels")  # fmt: skip
    shown_rows = []
    for row in rows:
        shown = [_ratio(row, name) for name in ("ratio", "unique_ratio", "sectors_over_ideal")]
        share = f"{row['share_16_byte']:.0%}" if "share_16_byte" in row else ""
        what = (row["backend"], row["op"], row["case"], _shape(row), row["dtype"], row["layout"])
        moved = f"{row['moved'] / 1e6:.2f}"
        shown_rows.append([*what, "yes" if row["means"] else "no", moved, *shown, share, row["kernel"]])
    return markdown.table(titles, shown_rows)


def _ratio(row: dict, name: str) -> str:
    if name not in row:
        return ""
    text = f"{row[name]:.3f}"
    return f"**{text}**" if not row[name] <= gates(row).get(name, row[name]) else text


def _shapes(row: dict) -> list[list[int]]:
    return row["shape"] if isinstance(row["shape"][0], list) else [row["shape"]]


def _shape(row: dict) -> str:
    shapes = _shapes(row)
    groups = shapes[: row["students"]], shapes[row["students"] :]
    return ", ".join(
        f"{group.count(shape)} x {tuple(shape)}" if len(shapes) > 1 else str(tuple(shape))
        for group in groups
        for shape in {tuple(shape): shape for shape in group}.values()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", choices=BACKENDS, action="append", help="which (repeatable; default: all)")
    parser.add_argument("--select", default="", help="only cases whose name (kind-name-dtype-layout) contains this")
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--check", action="store_true", help="exit with an error if a gate fails or can't be tried")
    parser.add_argument("--here", choices=BACKENDS, help=argparse.SUPPRESS)
    options = parser.parse_args()

    if options.here:
        try:
            rows = measure_here(options.here, options.select)
        except NotCounted as error:
            print(error, file=sys.stderr)
            raise SystemExit(EXIT_NOT_COUNTED) from error
        Path(options.json).write_text(json.dumps(rows))
        return
    rows, not_counted = [], []
    for backend in options.backend or BACKENDS:
        try:
            rows += measure(backend, options.select)
        except NotCounted as error:
            not_counted.append(f"{backend}: {error}")
    print(table(rows))
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1))
    failed = [*failures(rows), *not_counted]
    print("\n".join(["", *(failed or ["every gate holds"])]))
    if options.check and failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
