"""`python -m benchmarks.gpu_check`: everything that only a GPU can tell, in one run and one JSON report.

Parts, in this order: numerics of each backend; 100 repeated launches bit-identical; CUDA-graph capture; a second GPU;
timings; compute-sanitizer. Each part runs in a process of its own with a time limit, because an illegal access or a
hanging kernel spoils the process in which it happens; the report is written again after each part. Exit status 1 if a
part failed.

`--device cpu` is a dry run of all this with the backends that serve the CPU: it finds what does not depend on a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

import abckd_kernels
from abckd_kernels import backends

from . import gpu_parts, gpu_timings, pages
from .gpu_parts import ROOT, Setting
from .subjects import able

TIMINGS_SECONDS, SANITIZER_SECONDS = 420, 240
PER_BACKEND = {  # part: its function and the seconds after which it is ended
    "numerics": (gpu_parts.numerics, 300),
    "repeats": (gpu_parts.repeats, 120),
    "graph": (gpu_parts.graph, 120),
    "second_gpu": (gpu_parts.second_gpu, 180),
    "small": (gpu_parts.small, 300),
    "memcheck": (gpu_parts.memcheck, SANITIZER_SECONDS),
    "racecheck": (gpu_parts.racecheck, SANITIZER_SECONDS),
}
FIRST, LAST = ("numerics", "repeats", "graph", "second_gpu"), ("memcheck", "racecheck")


def parts(names: list[str]) -> list[str]:
    """All parts in their order, named part:backend, for these backends."""
    first, last = ([f"{part}:{name}" for part in group for name in names] for group in (FIRST, LAST))
    return [*first, "timings", *last]


def machine(device: str) -> dict:
    """What a report belongs to."""
    place = {
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "host": platform.platform(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "torch_hip": torch.version.hip,
        "triton": _version("triton"),
        "abckd_kernels": abckd_kernels.__version__,
        "extension": backends.extension().build_info() if backends.extension() else backends.EXTENSION_ERROR,
        "commit": _output("git", "-C", str(ROOT), "rev-parse", "HEAD"),
        "driver": _output(
            "nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv,noheader"
        ),
        "compute_sanitizer": gpu_parts.find_sanitizer() or "not installed",
    }
    if device == "cpu":
        return place
    names = ("name", "major", "minor", "multi_processor_count", "total_memory", "L2_cache_size")
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return place | {"gpus": [{name: getattr(gpu, name, None) for name in names} for gpu in properties]}


def _version(module: str) -> str | None:
    try:
        return __import__(module).__version__
    except ImportError:
        return None


def _output(program: str, *arguments: str) -> str | None:
    if shutil.which(program) is None:
        return None
    try:
        result = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def run_part(name: str, setting: Setting, file: Path | None) -> bool:
    """Run one part in this process; write {status, message, results} to `file`. True unless it failed."""

    def write(status: str, message: str, results) -> None:
        if file is not None:
            unfinished = file.with_suffix(".new")
            unfinished.write_text(json.dumps({"status": status, "message": message, "results": results}))
            unfinished.replace(file)

    latest = None

    def record(results) -> None:
        nonlocal latest
        latest = results
        write("running", "", results)

    setting.record = record
    part, _, backend = name.partition(":")
    try:
        if part == "timings":
            results = gpu_timings.timings(setting)
        else:
            results = PER_BACKEND[part][0](setting, backend)
        if setting.is_gpu:
            torch.cuda.synchronize()
    except gpu_parts.Skipped as reason:
        write("skipped", str(reason), None)
        return True
    except Exception as error:
        traceback.print_exc()
        write("failed", f"{type(error).__name__}: {error}"[:4000], latest)
        return False
    write("passed", "", results)
    return True


def start_part(name: str, setting: Setting) -> dict:
    """Run one part in a process of its own: {status, message, results, seconds}."""
    part = name.partition(":")[0]
    limit = TIMINGS_SECONDS if part == "timings" else PER_BACKEND[part][1]
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "part.json"
        command = [sys.executable, "-m", "benchmarks.gpu_check", "--part", name, "--device", setting.device]
        command += ["--part-report", str(file), *(["--quick"] if setting.quick else [])]
        end, output = _run_for(command, limit)
        report = {"status": "running", "message": "", "results": None}
        if file.exists():
            report = json.loads(file.read_text())
    if report["status"] == "running":
        report.update(status="failed", message=f"the process {end}: {output[-3000:]}")
    return report | {"seconds": round(time.monotonic() - start, 1)}


def _run_for(command: list[str], seconds: float) -> tuple[str, str]:
    """How the command ended, and what it printed. At the time limit it and all that it started are killed."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
        return f"ended with exit code {process.returncode}", output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return f"was ended after {seconds} s", output


def show(name: str, report: dict) -> str:
    """A line or more for the terminal."""
    lines = [f"{name:20} {report['status']:8} {report['seconds']:6.1f} s  {report['message'][:600]}".rstrip()]
    if name.startswith("numerics") and report["results"]:
        lines[0] += f"  {report['results']['done']} of {report['results']['checks']} checks"
    if name == "timings":
        for row in report["results"] or ():
            lines += [f"  {row['op']} {row['dtype']} {row['size']} {row['layout']}", pages.rates(row)]
            lines += [f"    {form:10} {error[:200]}" for form, error in row["errors"].items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "gpu_check.json", help="report (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="fewer checks and timings: about half the time")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: dry run")
    parser.add_argument("--only", action="append", help="only parts whose name starts with this (repeatable)")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--part-report", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu_check needs a GPU that PyTorch can use, and there is none here.")

    names = able(options.device)
    setting = Setting(options.device, names, options.quick)
    if options.part:
        raise SystemExit(0 if run_part(options.part, setting, options.part_report) else 1)
    if not names:
        raise SystemExit("none of the backends serves this GPU; `python -m abckd_kernels.info` says why.")

    report = {"machine": machine(options.device), "backends": names, "parts": {}, "finished": False}
    report["missing"] = {
        name: {op: backends.why_not(op, name, options.device) for op in backends.ops()}
        for name in ("cuda", "triton")
        if name not in names
    }
    print("\n".join(f"{key}: {value}" for key, value in report["machine"].items()), flush=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    for name in parts(names):
        if options.only and not name.startswith(tuple(options.only)):
            continue
        report["parts"][name] = start_part(name, setting)
        options.json.write_text(json.dumps(report, indent=1))
        print(show(name, report["parts"][name]), flush=True)
    report["finished"] = True
    options.json.write_text(json.dumps(report, indent=1))
    failed = [name for name, part in report["parts"].items() if part["status"] == "failed"]
    print(f"{len(report['parts'])} parts, failed: {', '.join(failed) or 'none'}; report: {options.json}")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
