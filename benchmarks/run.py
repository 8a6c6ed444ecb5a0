"""`python -m benchmarks.run`: every loss and op beside its published form in plain PyTorch and torch.compile of that.

All forms run in one process, interleaved, on the same inputs; every result is checked first, and a wrong one prints no
time. benchmarks/suite.py says what is measured. On a GPU (`--device cuda`) inputs take turns so that they are not in
the L2 cache, events measure, and the replay of a captured CUDA graph is timed beside the launched step.

    python -m benchmarks.run --write             measure, keep in benchmarks/measured/, write the pages
    python -m benchmarks.run --page              measure nothing, write the pages of what was measured
    python -m benchmarks.run --growth --write    time of abc over 64 times the batch, channels, frames, bands and layers
    python -m benchmarks.run --check             compare with the ratios of benchmarks/baseline.json
    python -m benchmarks.run --baseline          make what is measured the baseline
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path

import torch

from abckd_verify import markdown

from . import baseline, growth, pages, plots
from .correctness import Wrong
from .measuring import keep_memory
from .subjects import LAYOUTS, SIZES, Setup, able, subjects
from .suite import Effort, compiling, row

DTYPES = ("float32", "bfloat16", "float16", "float64")
QUICK = Effort(repeats=10, compiled=False, backends=False, network=False, extras=False)
QUICK_OPS = ("abc", "tap", "compress", "kl", "spectral", "sp", "hint")  # most ops, in losses that are quick to check


def main() -> None:
    options = _options()
    if options.page:
        pages.write()
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: there is no GPU that PyTorch can use.")
    if options.malloc == "keeps":
        keep_memory()
    if options.growth:
        found = growth.measure(options.device)
        print(growth.text(found))
        _keep(options, {}, found)
        return

    with compiling() if not options.quick else contextlib.nullcontext():
        rows, failed = _measured(options)
    if options.baseline and rows:
        baseline.write(rows, baseline.FILE)
    if options.check:
        failed += baseline.compare(rows, options.quick, lambda key: _again(options, rows[key]), baseline.FILE)
    _keep(options, rows, None)
    if failed:
        raise SystemExit("\n".join(failed))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage="%(prog)s [options]"
    )
    parser.add_argument("--op", choices=subjects(), action="append", metavar="NAME",
                        help=f"which (repeatable; default: all of {', '.join(subjects())})")  # fmt: skip
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="repeatable; default: float32 and bfloat16")
    parser.add_argument("--size", choices=SIZES, default="dns")
    parser.add_argument("--layout", choices=LAYOUTS, default="contiguous")
    parser.add_argument("--repeats", type=int, default=30, help="turns at most (%(default)s)")
    parser.add_argument("--malloc", choices=["keeps", "default"], default="keeps",
                        help="whether freed memory stays in the process, or glibc decides: then page faults count too "
                        "(%(default)s)")  # fmt: skip
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--plot", type=Path, help="draw the rows, or the growth, into this file")
    parser.add_argument("--quick", action="store_true", help=f"{', '.join(QUICK_OPS)}; without torch.compile; a minute")
    parser.add_argument("--check", action="store_true", help="exit status 1 where slower than the baseline")
    parser.add_argument("--baseline", action="store_true", help="keep the ratios as the baseline")
    parser.add_argument("--write", action="store_true", help="keep the rows, and write the pages")
    parser.add_argument("--page", action="store_true", help="only write the pages")
    parser.add_argument("--growth", action="store_true", help="measure growth instead")
    options = parser.parse_args()
    if options.write and options.quick:
        parser.error("--quick leaves out what --write keeps")
    if options.malloc == "default" and (options.write or options.check or options.baseline):
        parser.error("--malloc default: times depend on what ran before; not with --write, --check or --baseline")
    if options.repeats < 2:
        parser.error("--repeats: expected at least 2")
    return options


def _measured(options: argparse.Namespace) -> tuple[dict[str, dict], list[str]]:
    """Rows by key, and what failed."""
    rows, failed = {}, []
    effort = QUICK if options.quick else Effort(options.repeats)
    print(markdown.head(pages.SPEED), flush=True)
    for name in options.op or (QUICK_OPS if options.quick else subjects()):
        for dtype in options.dtype or ("float32", "bfloat16"):
            setup = Setup(getattr(torch, dtype), options.size, options.layout, options.device)
            if reason := subjects()[name].why_not(setup):
                print(f"{name}, {dtype}: {reason}", file=sys.stderr)
                continue
            try:
                found = row(subjects()[name], setup, effort)
            except Exception as error:
                if not isinstance(error, Wrong | RuntimeError | ValueError):
                    raise
                failed.append(f"{name}, {setup}: {error}")
                print(failed[-1], file=sys.stderr)
                continue
            rows[f"{name}, {setup}"] = found
            print(markdown.row(pages.speed_cells(found)), flush=True)
            if options.device == "cuda":
                print(pages.rates(found), flush=True)
            for form, error in found["errors"].items():
                print(f"{name}, {dtype}: {form}: {error}", file=sys.stderr)
                if form in able(options.device):
                    failed.append(f"{name}, {setup}: {form}: {error}")
            if options.write:
                pages.keep({f"{name}, {setup}": found})
    if rows:
        print("\n" + pages.place(next(iter(rows.values()))["machine"]))
    return rows, failed


def _again(options: argparse.Namespace, before: dict) -> dict:
    setup = Setup(getattr(torch, before["dtype"]), before["size"], before["layout"], before["device"])
    return row(subjects()[before["op"]], setup, QUICK if options.quick else Effort(options.repeats))


def _keep(options: argparse.Namespace, rows: dict[str, dict], grown: dict | None) -> None:
    if options.json:
        options.json.write_text(json.dumps(grown or rows, indent=1) + "\n")
    if options.plot:
        plots.growth(grown, options.plot) if grown else plots.speed(list(rows.values()), options.plot)
    if options.write:
        pages.keep({}, grown)
        pages.write()


if __name__ == "__main__":
    main()
