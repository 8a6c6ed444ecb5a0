"""Starts workers within the budget, keeps what they say, and writes the page at the end."""

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
from collections.abc import Iterator
from pathlib import Path

import torch

import abckd_kernels
from abckd_kernels import backends

from .. import ROOT, environment, losses
from ..ops import SPECS
from . import parts, plan
from .setting import PLANNED, Setting

BUDGET = 600
PLANNED_FOR = ["cuda", "triton"]  # backends of a dry run
LONGEST_ITEM = 90  # seconds after which an item hangs
SLOWEST = 10


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
        "compute_sanitizer": parts.find_sanitizer() or "not installed",
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


# ------------------------------------------------------------------------------------------------ running


class Worker:
    """A process for some items of a task, and another one each time that it dies before their end."""

    def __init__(self, task: plan.Task, items: list[str], folder: Path):
        self.task, self.items, self.begun_at = task, list(items), time.monotonic()
        self.file = Path(tempfile.mkstemp(dir=folder, suffix=".jsonl")[1])
        self.output, self.read, self.begun = self.file.with_suffix(".txt"), 0, ""
        self._start()

    def _start(self) -> None:
        command = [sys.executable, "-m", "abckd_verify.gpu_check.worker", self.task.part.name, self.task.backend]
        command += [self.task.device, str(self.file)]
        settings = environment(CUBLAS_WORKSPACE_CONFIG=":4096:8")
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=settings, start_new_session=True, stdin=subprocess.PIPE, stdout=output,
                stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("\n".join(self.items))
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # it died at once, which `poll` sees

    def poll(self) -> Iterator[dict]:
        """What is new. Of an item that killed its process, or hangs, that it failed; the others then go on."""
        ended = self.process.poll()
        yield from self._read()
        hangs = ended is None and time.monotonic() - self.begun_at > LONGEST_ITEM
        if hangs:
            self.end()
        if (ended is not None or hangs) and self.items:
            how = f"hung for {LONGEST_ITEM} s" if hangs else f"ended with exit code {ended}"
            if self.begun or ended not in (0, 1, 3):
                item = self.begun or self.items[0]
                self.items.remove(item)
                self.begun = ""
                message = f"the process {how}: {self.output.read_text(errors='replace')[-1500:]}"
                yield self._line(item, "failed", message)
            if self.items:
                self.begun_at = time.monotonic()
                self._start()

    def rest(self) -> Iterator[dict]:
        """What is new at the end, and of the items that are left, that they were not reached."""
        yield from self._read()
        for item in self.items:
            yield self._line(item, "not reached", "")

    def _read(self) -> Iterator[dict]:
        with self.file.open() as file:
            file.seek(self.read)
            text = file.read()
        whole = text[: text.rfind("\n") + 1]
        self.read += len(whole.encode())
        for line in map(json.loads, whole.splitlines()):
            if line["status"] == "begun":
                self.begun, self.begun_at = line["item"], time.monotonic()
                continue
            self.begun = ""
            self.items.remove(line["item"])
            yield line

    def _line(self, item: str, status: str, message: str) -> dict:
        seconds = 0.0 if status == "not reached" else round(time.monotonic() - self.begun_at, 3)
        return {"part": self.task.part.name, "backend": self.task.backend, "item": item, "status": status,
                "seconds": seconds, "message": message, "result": {}}  # fmt: skip

    @property
    def is_done(self) -> bool:
        return not self.items and self.process.poll() is not None

    def end(self) -> None:
        """Kill the process and all that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def run_task(task: plan.Task, seconds: float) -> Iterator[dict]:
    """Results of the task's items as they come; those that the time does not reach as "not reached"."""
    deadline = time.monotonic() + seconds
    items, count = task.items, min(task.part.processes, os.cpu_count() or 1, len(task.items))
    with tempfile.TemporaryDirectory() as folder:
        workers = [Worker(task, items[k::count], Path(folder)) for k in range(count)]
        try:
            while not all(worker.is_done for worker in workers) and time.monotonic() < deadline:
                for worker in workers:
                    yield from worker.poll()
                time.sleep(0.05)
        finally:
            for worker in workers:
                worker.end()
        for worker in workers:
            yield from worker.rest()


def run(found: list[plan.Task], budget: float, file: Path) -> list[dict]:
    """All tasks within the budget. Each gets the share of what is left that is planned for it, or all that it plans."""
    lines: list[dict] = []
    end = time.monotonic() + budget
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as out:
        out.write(json.dumps({"machine": machine(found[0].device)}) + "\n")
        for index, task in enumerate(found):
            left = end - time.monotonic()
            share = left * task.planned / sum(other.planned for other in found[index:])
            start = time.monotonic()
            of_task = []
            for line in run_task(task, min(left, max(share, 2 * task.planned))):
                of_task.append(line)
                out.write(json.dumps(line) + "\n")
                out.flush()
            lines += of_task
            counts = {status: sum(line["status"] == status for line in of_task) for status in STATUSES}
            shown = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
            print(f"{str(task):28} {time.monotonic() - start:6.1f} s  {shown}", flush=True)
    return lines


STATUSES = ("passed", "failed", "skipped", "not reached")

# ------------------------------------------------------------------------------------------------ pages


def page(lines: list[dict]) -> str:
    """What failed, what was not reached, what was skipped, and what is slowest against a copy."""
    by_status = {status: [line for line in lines if line["status"] == status] for status in STATUSES}
    text = ["", ", ".join(f"{len(found)} {status}" for status, found in by_status.items()), ""]
    if by_status["failed"]:
        text += ["Failed:", *(f"  {_title(line)}: {_first_line(line['message'])}" for line in by_status["failed"]), ""]
    if by_status["not reached"]:
        text += ["Not reached:", *_summed(by_status["not reached"]), ""]
    if by_status["skipped"]:
        reasons = dict.fromkeys(f"  {_of(line)}: {line['message']}" for line in by_status["skipped"])
        text += ["Skipped:", *reasons, ""]
    ranked = shares(lines)
    if ranked:
        text.append(f"The {min(SLOWEST, len(ranked))} slowest of {len(ranked)}, against the bandwidth of a copy:")
        for share, title, rate, others in ranked[:SLOWEST]:
            text.append(f"  {share:5.0%}  {rate:7.0f} GB/s  {title}{others}")
    return "\n".join(text)


def shares(lines: list[dict]) -> list[tuple[float, str, float, str]]:
    """(share of a copy's bandwidth, what, GB/s, beside what) of each timed direction, the slowest first."""
    copies = [x["result"]["bytes_per_second"] for x in lines if x["part"] == "bandwidth" and x["status"] == "passed"]
    if not copies:
        return []
    ranked = []
    for line in lines:
        if line["part"] == "times" and line["status"] == "passed":
            both = sum(line["result"][x]["ms"] for x in ("forward", "backward"))
            beside = f"; eager takes {line['result']['eager_ms'] / both:.1f} times as long as both ways"
            for direction in ("forward", "backward"):
                rate = line["result"][direction]["gb_per_s"]
                ranked.append((rate * 1e9 / copies[0], f"{_title(line)} {direction}", rate, beside))
    return sorted(ranked)


def _of(line: dict) -> str:
    return f"{line['part']} ({line['backend']})"


def _title(line: dict) -> str:
    return f"{_of(line)} {line['item']}"


def _first_line(message: str) -> str:
    return message.splitlines()[0][:300] if message else ""


def _summed(lines: list[dict]) -> Iterator[str]:
    for task in dict.fromkeys(_of(line) for line in lines):
        items = [line["item"] for line in lines if _of(line) == task]
        yield f"  {task}: {len(items)} items, from {items[0]}"


def show_plan(found: list[plan.Task], budget: float) -> str:
    """Ops and losses covered, and the seconds of each part."""
    ops, of_losses = plan.covered(found)
    rows = [f"{str(task):28} {len(task.items):5} items {task.planned:7.0f} s" for task in found]
    total = sum(task.planned for task in found)
    return "\n".join(
        [
            f"ops {len(ops)} of {len(SPECS)}: {', '.join(sorted(ops))}",
            f"losses {len(of_losses)} of {len(losses.by_name())}: {', '.join(sorted(of_losses))}",
            "", *rows, "",
            f"planned for an H100 with 16 processors: {total:.0f} s, budget {budget:.0f} s",
        ]
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m abckd_verify.gpu_check", description="Everything that only a GPU can tell, in one run."
    )
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all of it (%(default)s)")
    parser.add_argument("--part", action="append", choices=plan.BY_NAME, help="only this part (repeatable)")
    parser.add_argument("--report", type=Path, default=ROOT / "build" / "gpu_check.jsonl", help="results (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be checked, on an H100, and stop")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal without a GPU")
    options = parser.parse_args()
    setting = Setting(options.device)
    if options.dry_run:
        print(show_plan(plan.tasks(Setting(PLANNED), PLANNED_FOR, options.part), options.budget))
        return
    if setting.is_gpu and not torch.cuda.is_available():
        raise SystemExit("gpu_check needs a GPU that PyTorch can use, and there is none here.")
    names = setting.backends()
    if not names:
        raise SystemExit("none of the backends serves this GPU; `python -m abckd_kernels.info` says why.")
    found = plan.tasks(setting, names, options.part)
    print(show_plan(found, options.budget), flush=True)
    print("\n".join(f"{key}: {value}" for key, value in machine(options.device).items()), "", sep="\n", flush=True)
    lines = run(found, options.budget, options.report)
    print(page(lines))
    print(f"\nreport: {options.report}")
    raise SystemExit(1 if any(line["status"] == "failed" for line in lines) else 0)
