"""`python -m abckd_verify.traffic`: bytes that the GPU kernels move over the fewest possible, counted without a GPU.

Triton's kernels are counted in Triton's interpreter, the CUDA kernels in the emulator, on each Spec's `traffic` cases.
`moved` sums what the elements of all loads and stores asked for. `unique` is what memory carries where the cache keeps
what an op reads again: distinct sectors of 32 bytes, namely all that its launches store and those that its hungriest
launch loads; the others load what that one loaded, or what they stored. The fewest possible: `Run.bytes`.

Gates (--check), each at most 1.05 but for the last:
    moved / compulsory       where a Spec says so: what is read once; cuda: also a whole step of abc_loss
    unique / compulsory      where a Spec says so: what is read again from the cache
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

from abckd_kernels import use_backend

from . import ROOT, environment, markdown
from .inputs import name_of
from .machines.interpreter_counter import NotCounted
from .ops import SPECS
from .running import Run
from .spec import LIMIT, MEGABYTE, Case, Spec, tensors

EXIT_NOT_COUNTED = 3
BACKENDS = ("triton", "cuda")
LIMIT_OF_UNALIGNED_SECTORS = 2.0
EMULATED = ("sectors", "ideal_sectors", "loaded", "loaded_by_16")
SERVED_BY = {"triton": "triton", "cuda": "cpu"}  # the emulator stands in for the CPU's own kernels
STEP = {  # of abc_loss: rows that make one, as (op, case); backward reads the student's features again
    "step_forward": (("tap_forward", "step, all layers"), ("compress_forward", "step")),
    "step_backward": (("compress_backward", "step"), ("tap_backward", "step, student")),
}


def of(backend: str) -> list[tuple[Spec, Case]]:
    """What is counted for a backend."""
    specs = [spec for spec in SPECS.values() if backend in spec.launches]
    return [(spec, spec.sized(case, MEGABYTE)) for spec in specs for case in spec.traffic]


def measure(backend: str, select: str = "") -> list[dict]:
    """Rows of one backend, for the cases whose name contains `select`, counted in a process of its own.

    A row has backend, op, kernel (of several: joined by " + "), id and case, dtype, layout, shape (of its largest
    argument), limits (ratio: the most it may be); moved, compulsory and unique bytes and their ratios; for cuda also
    sectors_over_ideal and share_16_byte, of the loaded bytes. A step's rows are sums of those of its ops.

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
        for spec, case in of(backend):
            if select not in f"{spec.name}-{case}":
                continue
            run = Run(spec, spec.make(case, values="random"))
            for direction in ("forward", "backward"):
                with counting() as counter:
                    getattr(run, direction)()
                rows.append(row(backend, spec, case, direction, counter.kernels, run))
    return rows + steps(rows)


def row(backend: str, spec: Spec, case: Case, direction: str, kernels: dict, run: Run) -> dict:
    names = ("moved", *EMULATED) if backend == "cuda" else ("moved",)
    total = {name: sum(getattr(traffic, name) for traffic in kernels.values()) for name in names}
    total["unique"] = max(x.unique_loaded for x in kernels.values()) + sum(x.unique_stored for x in kernels.values())
    largest = max(tensors(run.arguments.values()), key=lambda x: x.nbytes)
    described = {
        "backend": backend,
        "op": f"{spec.name}_{direction}",
        "kernel": " + ".join(kernels),
        "id": f"{spec.name}-{case}",
        "case": case.name,
        "dtype": name_of(case.dtype),
        "layout": case.layout,
        "shape": list(largest.shape),
    }
    found = with_ratios(described | {"compulsory": run.bytes(direction)} | total)
    limits = dict(spec.gates(direction, case))
    if backend == "cuda" and case.layout == "contiguous":
        limits["sectors_over_ideal"] = LIMIT if _rows_are_aligned(run) else LIMIT_OF_UNALIGNED_SECTORS
    return found | {"limits": limits}


def _rows_are_aligned(run: Run) -> bool:
    """True if every channel of every feature, and every map of it, begins at a multiple of 16 bytes."""
    found = [x for x in tensors(run.arguments.values()) if x.dim() > 2]
    return all(x.shape[-1] * x.shape[-2] * size % 16 == 0 for x in found for size in (x.itemsize, max(x.itemsize, 4)))


def steps(rows: list[dict]) -> list[dict]:
    """Whole steps of abc_loss, for each dtype of which all parts are among the rows. Maps have a dtype of their own."""
    known = {(x["op"], x["case"], x["dtype"]): x for x in rows}
    found = []
    for dtype, batch in (("float32", ""), ("bfloat16", " of two")):
        for name, parts in STEP.items():
            keys = [(op, case + batch, "float32" if op.startswith("compress") else dtype) for op, case in parts]
            if all(key in known for key in keys):
                found.append(total(name, [known[key] for key in keys]))
    return found


def total(op: str, parts: list[dict]) -> dict:
    tap = next(part for part in parts if part["op"].startswith("tap"))
    limits = {"ratio": LIMIT} if tap["backend"] == "cuda" else {}
    found = tap | {"op": op, "kernel": " + ".join(part["kernel"] for part in parts), "limits": limits}
    for name in ("moved", "unique", "compulsory", *EMULATED):
        if name in found:
            found[name] = sum(part[name] for part in parts)
    return with_ratios(found)


def with_ratios(row: dict) -> dict:
    row["ratio"] = row["moved"] / row["compulsory"]
    row["unique_ratio"] = row["unique"] / row["compulsory"]
    if "sectors" in row:
        row["sectors_over_ideal"] = row["sectors"] / row["ideal_sectors"]
        row["share_16_byte"] = row["loaded_by_16"] / row["loaded"]
    return row


def failures(rows: list[dict]) -> list[str]:
    """A sentence for each gate that a row fails."""
    return [
        f"{title(row)}: {gate} {row[gate]:.3f}, at most {limit}"
        for row in rows
        for gate, limit in row["limits"].items()
        if not row[gate] <= limit
    ]


def title(row: dict) -> str:
    return f"{row['backend']} {row['op']}, {row['case']}, {row['dtype']} {row['layout']}"


def table(rows: list[dict]) -> str:
    """The rows in Markdown; a ratio above its gate is bold."""
    titles = ("backend", "op", "case", "largest argument", "dtype", "layout", "moved MB", "moved / compulsory",
              "unique / compulsory", "sectors / ideal", "by 16 bytes", "kernels")  # fmt: skip
    shown_rows = []
    for row in rows:
        shown = [_ratio(row, name) for name in ("ratio", "unique_ratio", "sectors_over_ideal")]
        share = f"{row['share_16_byte']:.0%}" if "share_16_byte" in row else ""
        what = (row["backend"], row["op"], row["case"], str(tuple(row["shape"])), row["dtype"], row["layout"])
        shown_rows.append([*what, f"{row['moved'] / 1e6:.2f}", *shown, share, row["kernel"]])
    return markdown.table(titles, shown_rows)


def _ratio(row: dict, name: str) -> str:
    if name not in row:
        return ""
    text = f"{row[name]:.3f}"
    return f"**{text}**" if not row[name] <= row["limits"].get(name, row[name]) else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", choices=BACKENDS, action="append", help="which (repeatable; default: all)")
    parser.add_argument("--select", default="", help="only cases whose name (op-name-dtype-layout) contains this")
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
