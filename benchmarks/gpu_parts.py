"""The parts of `benchmarks.gpu_check` but its timings: each a function that raises where something is wrong.

A part gets `Setting` and returns what the report shall say. Skipped says why there is nothing to do.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from abckd_kernels import abc_loss, compress, tap_all, use_backend
from abckd_verify.machines.compiled_cuda import toolkits

ROOT = Path(__file__).parents[1]
REPEATS = 100


class Skipped(Exception):
    """A part has nothing to do here; the message says why."""


@dataclass
class Setting:
    """Where a part runs. device: "cuda" or, in a dry run, "cpu". backends: those that serve it. record: shows the
    parent what there is so far, in case the part does not come to its end.
    """

    device: str
    backends: list[str]
    quick: bool
    record: Callable[[object], None] = lambda results: None

    @property
    def is_gpu(self) -> bool:
        return self.device != "cpu"


def numerics(setting: Setting, backend: str) -> dict:
    """All checks of benchmarks.gpu_numerics, or as many as time allows."""
    from .gpu_numerics import CHECKS

    torch.use_deterministic_algorithms(True, warn_only=True)  # fresh memory is NaN: what is not written is found
    deadline = time.monotonic() + (40 if setting.quick else 150)
    done, failed = 0, {}
    with use_backend(backend):
        for name, check in CHECKS.items():
            if time.monotonic() > deadline:
                break
            try:
                check(torch.device(setting.device))
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {error}"[:2000]
            done += 1
            setting.record({"checks": len(CHECKS), "done": done, "failed": failed})
            if setting.is_gpu and _is_lost():
                failed[name] = failed.get(name, "") + " (and the GPU answers no more)"
                break
    if failed:
        raise AssertionError(
            f"{len(failed)} of {done} checks failed: " + "; ".join(f"{k}: {v}" for k, v in failed.items())
        )
    return {"checks": len(CHECKS), "done": done, "failed": failed}


def _is_lost() -> bool:
    """True after an error that stays until the process ends, such as an illegal address."""
    try:
        torch.cuda.synchronize()
        return False
    except RuntimeError:
        return True


def training_step(students: list[Tensor], teachers: list[Tensor]) -> list[Tensor]:
    """A step that uses all ops and all of their outputs: loss, attention and the gradients of the students."""
    passed, maps, means = tap_all([*students, *teachers])
    n = len(students)
    distances, attention = compress(maps[:n], maps[n:])
    rest_of_the_network = sum(x.float().square().mean() for x in (*passed[:n], *means[:n]))
    loss = distances.mean() + rest_of_the_network
    return [loss, attention, *torch.autograd.grad(loss, students)]


def example(device: str, dtype: torch.dtype, channels_last: bool = False, batch: int = 2, seed: int = 0):
    """Features of three students and two teachers of different sizes, of which the students require gradients."""
    generator = torch.Generator().manual_seed(seed)

    def feature(*shape: int) -> Tensor:
        x = torch.randn(shape, generator=generator).to(device, dtype)
        return x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x

    students = [feature(batch, 32, 100, 64), feature(batch, 17, 51, 33), feature(batch, 64, 100, 32)]
    return [x.requires_grad_() for x in students], [feature(batch, 64, 100, 64), feature(batch, 33, 101, 65)]


EXAMPLES = [(dtype, layout) for dtype in (torch.float32, torch.bfloat16) for layout in (False, True)]


def repeats(setting: Setting, backend: str) -> dict:
    """The same step again and again gives the same bits."""
    turns = REPEATS if setting.is_gpu else 5
    with use_backend(backend):
        for dtype, channels_last in EXAMPLES:
            inputs = example(setting.device, dtype, channels_last)
            first = training_step(*inputs)
            for turn in range(1, turns):
                for index, (x, expected) in enumerate(zip(training_step(*inputs), first, strict=True)):
                    assert torch.equal(x, expected), (
                        f"{dtype}: result {index} of launch {turn} has other bits than the first"
                    )
    return {"repeats": turns}


def graph(setting: Setting, backend: str) -> dict:
    """A captured step, replayed on new inputs, gives the bits of an eager one."""
    if not setting.is_gpu:
        raise Skipped("graphs are captured on GPUs only")
    with use_backend(backend):
        for dtype, channels_last in EXAMPLES:
            inputs = example(setting.device, dtype, channels_last)
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):  # compile and allocate before the capture
                    training_step(*inputs)
            torch.cuda.current_stream().wait_stream(side)
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                results = training_step(*inputs)
            for seed in (1, 2):
                fresh = example(setting.device, dtype, channels_last, seed=seed)
                with torch.no_grad():
                    for static, new in zip((*inputs[0], *inputs[1]), (*fresh[0], *fresh[1]), strict=True):
                        static.copy_(new)
                captured.replay()
                for index, (x, expected) in enumerate(zip(results, training_step(*fresh), strict=True)):
                    assert torch.equal(x, expected), f"{dtype}: result {index} of a replay differs from eager"
    return {}


def second_gpu(setting: Setting, backend: str) -> dict:
    """Tensors on another GPU than the current one."""
    if not setting.is_gpu:
        raise Skipped("there is no GPU")
    if torch.cuda.device_count() < 2:
        raise Skipped("there is one GPU only")
    from . import gpu_numerics

    other = torch.device("cuda", 1)
    with use_backend(backend):
        for dtype, channels_last in EXAMPLES:
            here = training_step(*example("cuda:0", dtype, channels_last))
            there = training_step(*example("cuda:1", dtype, channels_last))
            assert all(x.device == other for x in there)
            assert torch.cuda.current_device() == 0, "the current device has changed"
            if torch.cuda.get_device_name(0) == torch.cuda.get_device_name(1):
                assert all(torch.equal(x, y.to(x.device)) for x, y in zip(here, there, strict=True)), (
                    f"{dtype}: other bits"
                )
        gpu_numerics.check_abc_loss(other, gpu_numerics.cases.PADDED, torch.float32)
    return {"device": torch.cuda.get_device_name(1)}


def small(setting: Setting, backend: str) -> dict:
    """One small step per dtype and layout, the work of memcheck and racecheck."""
    with use_backend(backend):
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)[: 2 if setting.quick else 4]:
            for channels_last in (False, True):
                training_step(*example(setting.device, dtype, channels_last, batch=1))
                students, teachers = example(setting.device, dtype, channels_last, batch=2)
                abc_loss(students, teachers, lengths=torch.tensor([101, 37])).backward()
    if setting.is_gpu:
        torch.cuda.synchronize()
    return {}


def memcheck(setting: Setting, backend: str) -> dict:
    """No access out of bounds or misaligned."""
    return _sanitize(setting, backend, "memcheck")


def racecheck(setting: Setting, backend: str) -> dict:
    """No hazard in shared memory."""
    return _sanitize(setting, backend, "racecheck")


def _sanitize(setting: Setting, backend: str, tool: str) -> dict:
    if not setting.is_gpu:
        raise Skipped("compute-sanitizer looks at GPUs only")
    sanitizer = find_sanitizer()
    if sanitizer is None:
        raise Skipped("compute-sanitizer is not installed")
    command = [sanitizer, "--tool", tool, "--report-api-errors", "no", "--error-exitcode", "9"]
    command += [sys.executable, "-m", "benchmarks.gpu_check", "--part", f"small:{backend}"]
    command += ["--quick"] if setting.quick else []
    # Without torch's cache every tensor is an allocation of its own, with bounds that memcheck sees.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace")
    output = result.stdout + result.stderr
    assert result.returncode == 0, f"exit code {result.returncode}: {output[:3000]} ... {output[-1500:]}"
    return {"summary": [line for line in output.splitlines() if "SUMMARY" in line]}


def find_sanitizer() -> str | None:
    """Path of compute-sanitizer: on PATH, or with the CUDA toolkit."""
    folders = [home / place for home in toolkits() for place in ("bin", "compute-sanitizer")]
    places = os.pathsep.join(map(str, folders))
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=places)
