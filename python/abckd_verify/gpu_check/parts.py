"""What an item of each part does: it raises where something is wrong, or returns what the report shall say of it.

An item of an op is "op/case"; one of a loss "loss/dtype".
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from abckd_kernels import backends, use_backend

from .. import ROOT, environment, losses, numerics
from ..inputs import name_of
from ..machines import devices
from ..machines.compiled_cuda import toolkits
from ..ops import SPECS
from ..running import Run
from ..spec import Case, Spec, tensors
from .setting import Setting

REPEATS = 100
TURNS, WARM_UP = 30, 5
SMALL_CACHE = 2**16  # of a rehearsal


class Skipped(Exception):
    """An item has nothing to do here; the message says why."""


def find(item: str, of: str) -> tuple[Spec, Case]:
    """The op and its case, one of the Spec's cases `of`."""
    op, _, name = item.partition("/")
    return SPECS[op], next(case for case in getattr(SPECS[op], of) if str(case) == name)


def problem(item: str, device: str, seed: int = 0) -> losses.Problem:
    name, _, dtype = item.partition("/")
    return losses.Problem(losses.by_name()[name], getattr(torch, dtype), device, seed)


# ------------------------------------------------------------------------------------------------ numerics


def compile_op(setting: Setting, item: str) -> dict:
    """Triton compiles what the case launches; nothing is looked at."""
    spec, case = find(item, "cases")
    run = Run(spec, spec.make(case, setting.device))
    run.forward(), run.backward()
    return {}


def compile_timed(setting: Setting, item: str) -> dict:
    spec, case = find(item, "timed")
    run = Run(spec, spec.make(case.sized(1), setting.device, "random"))
    run.forward(), run.backward()
    return {}


def compile_loss(setting: Setting, item: str) -> dict:
    problem(item, setting.device).step()
    return {}


def op(setting: Setting, item: str) -> dict:
    """Results and gradients within rounding of the exact ones."""
    numerics.check(*find(item, "cases"), setting.device)
    return {}


def loss(setting: Setting, item: str) -> dict:
    name, _, dtype = item.partition("/")
    return losses.check(losses.by_name()[name], getattr(torch, dtype), setting.device)


def repeats(setting: Setting, item: str) -> dict:
    """The same launch again and again gives the same bits."""
    spec, case = find(item, "cases")
    run = Run(spec, spec.make(case, setting.device))
    first = _bits(run)
    turns = REPEATS if setting.is_gpu else 3
    for turn in range(1, turns):
        _same(_bits(run), first, f"launch {turn} has other bits than the first")
    return {"repeats": turns}


def repeated_loss(setting: Setting, item: str) -> dict:
    one = problem(item, setting.device)
    first = one.step()
    for turn in range(1, 5):
        _same(one.step(), first, f"step {turn} has other bits than the first")
    return {"repeats": 5}


def _bits(run: Run) -> list[Tensor]:
    return [x.clone() for x in tensors([*run.forward().values(), *run.backward().values()])]


def _same(ours: list[Tensor], expected: list[Tensor], what: str) -> None:
    for index, (x, y) in enumerate(zip(ours, expected, strict=True)):
        assert torch.equal(x, y), f"result {index}: {what}"


# ------------------------------------------------------------------------------------------------ graphs, devices


def graph(setting: Setting, item: str) -> dict:
    """A captured step of a loss, replayed on new inputs, gives the bits of an eager one."""
    if not setting.is_gpu:
        raise Skipped("graphs are captured on GPUs only")
    one = problem(item, setting.device)
    captured, results = devices.capture(one.step)
    for seed in (50, 60):
        fresh = problem(item, setting.device, seed)
        with torch.no_grad():
            for static, new in zip([*one.student, *one.teacher], [*fresh.student, *fresh.teacher], strict=True):
                static.copy_(new)
            for name, static in one.extra.items():
                static.copy_(fresh.extra[name])
        captured.replay()
        replayed = [x.clone() for x in results]
        _same(replayed, one.step(), "a replay differs from an eager step")
    return {}


def second_device(setting: Setting, item: str) -> dict:
    """The second GPU computes what the first does, while the first is current."""
    if not setting.is_gpu:
        raise Skipped("the rehearsal has no GPU")
    if torch.cuda.device_count() < 2:
        raise Skipped("there is one GPU only")
    name, _, dtype = item.partition("/")
    errors = losses.check(losses.by_name()[name], getattr(torch, dtype), "cuda:1")
    assert torch.cuda.current_device() == 0, "the current device has changed"
    return errors


# ------------------------------------------------------------------------------------------------ times


def bandwidth(setting: Setting, item: str) -> dict:
    """What a copy moves, bytes per second."""
    device = devices.DEVICES[setting.device]
    stream = device.streams()["copy"]
    seconds = devices.median_milliseconds(device, stream.work, TURNS, WARM_UP) / 1e3
    return {"bytes_per_second": stream.bytes / seconds}


def least_bytes(setting: Setting) -> int:
    """Of a case's largest tensor: four times the last cache."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size if setting.is_gpu else SMALL_CACHE
    return devices.TIMES_L2 * cache


def times(setting: Setting, item: str) -> dict:
    """Forward and backward kernels, and the eager form of both."""
    spec, case = find(item, "timed")
    case = spec.sized(case, least_bytes(setting))
    run = Run(spec, spec.make(case, setting.device, "random"))
    found: dict = {"batch": case.options["batch"]}
    for direction in ("forward", "backward"):
        milliseconds = _milliseconds(setting, getattr(run, direction))
        moved = run.bytes(direction)
        found[direction] = {"ms": milliseconds, "bytes": moved, "gb_per_s": moved / milliseconds / 1e6}
    found["eager_ms"] = _milliseconds(setting, _plain_step(spec, run.arguments, numerics.plain_op(spec)))
    return found


def compiled_times(setting: Setting, item: str) -> dict:
    """Forward and backward of torch.compile of the plain form, and of the op."""
    spec, case = find(item, "timed")
    case = spec.sized(case, least_bytes(setting))
    arguments = spec.make(case, setting.device, "random")
    compiled = torch.compile(numerics.plain_op(spec), dynamic=False)
    return {
        "ours_ms": _milliseconds(setting, _plain_step(spec, arguments, numerics.op(spec))),
        "compiled_ms": _milliseconds(setting, _plain_step(spec, arguments, compiled)),
    }


def loss_times(setting: Setting, item: str) -> dict:
    """A step of a loss, beside the same in plain PyTorch."""
    one = problem(item, setting.device)
    found = {"ours_ms": _milliseconds(setting, one.step)}
    with use_backend("reference"):
        found["eager_ms"] = _milliseconds(setting, one.step)
    return found


def _plain_step(spec: Spec, arguments: dict, function):
    def step():
        outputs, leaves = numerics.differentiable(spec, arguments, function)
        ones = [torch.ones_like(x) for x in outputs.values()]
        return torch.autograd.grad(list(outputs.values()), list(leaves.values()), ones)

    return step


def _milliseconds(setting: Setting, work) -> float:
    turns, warm_up = (TURNS, WARM_UP) if setting.is_gpu else (1, 0)
    return devices.median_milliseconds(devices.DEVICES[setting.device], work, turns, warm_up)


# ------------------------------------------------------------------------------------------------ sanitizer


def memcheck(setting: Setting, item: str) -> dict:
    """No access out of bounds or misaligned."""
    return _sanitize(setting, item, "memcheck")


def racecheck(setting: Setting, item: str) -> dict:
    """No hazard in shared memory."""
    return _sanitize(setting, item, "racecheck")


def _sanitize(setting: Setting, item: str, tool: str) -> dict:
    """item: an op, of which the first case of each dtype runs."""
    if not setting.is_gpu:
        raise Skipped("compute-sanitizer looks at GPUs only")
    sanitizer = find_sanitizer()
    if sanitizer is None:
        raise Skipped("compute-sanitizer is not installed")
    spec = SPECS[item.partition("/")[0]]
    first = {case.dtype: f"{spec.name}/{case}" for case in reversed(spec.cases)}
    command = [sanitizer, "--tool", tool, "--report-api-errors", "no", "--error-exitcode", "9", sys.executable]
    command += ["-m", "abckd_verify.gpu_check.worker", "compile ops", backends.forced(), setting.device, "-"]
    # Without torch's cache every tensor is an allocation of its own, with bounds that memcheck sees.
    settings = environment(PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    result = subprocess.run(
        command, cwd=ROOT, env=settings, input="\n".join(first.values()), capture_output=True, text=True,
        errors="replace",
    )  # fmt: skip
    output = result.stdout + result.stderr
    assert result.returncode == 0, f"exit code {result.returncode}: {output[:3000]} ... {output[-1500:]}"
    return {"summary": [line for line in output.splitlines() if "SUMMARY" in line]}


def find_sanitizer() -> str | None:
    """Path of compute-sanitizer: on PATH, or with the CUDA toolkit."""
    folders = [Path(home) / place for home in toolkits() for place in ("bin", "compute-sanitizer")]
    places = os.pathsep.join(map(str, folders))
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=places)


def dtype_names(dtypes) -> list[str]:
    return [name_of(dtype) for dtype in dtypes]
