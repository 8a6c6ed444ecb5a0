"""What benchmarks on the CPU share: the machine, its bandwidth, time, memory and traffic of a step."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import abckd_kernels
from abckd_kernels.backends import extension

STUDENT, TEACHER = (8, 32, 200, 64), (8, 64, 200, 64)  # a noise suppressor on 3.2 s segments: (B, C, T, F)


def machine() -> dict[str, str]:
    """What a row of results belongs to."""
    with open("/proc/cpuinfo") as info:
        model = next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), "unknown")
    built = extension()
    return {
        "cpu": f"{model}, {platform.machine()}",
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "abckd_kernels": abckd_kernels.__version__,
        "instruction set": built.build_info()["CPU instruction set"] if built else "no extension",
    }


def bandwidths() -> tuple[float, float]:
    """Bytes per second of the best of several reads, and (read plus written) of several copies, of 256 MB."""
    source = torch.ones(64 * 2**20)
    target = torch.empty_like(source)

    def best(work: Callable, size: int) -> float:
        durations = []
        for _ in range(7):
            start = time.perf_counter()
            work()
            durations.append(time.perf_counter() - start)
        return size / min(durations)

    return best(source.sum, source.nbytes), best(lambda: target.copy_(source), 2 * source.nbytes)


def limit(read: Sequence[Tensor], differentiated: Sequence[Tensor]) -> dict[str, float]:
    """Milliseconds of compulsory traffic: forward reads all, backward reads and writes what gets gradients."""
    reading, copying = bandwidths()
    forward = sum(x.nbytes for x in read) / reading * 1e3
    return {"forward": forward, "total": forward + 2 * sum(x.nbytes for x in differentiated) / copying * 1e3}


def time_step(form: Callable[[], Tensor], leaves: Iterable[Tensor]) -> tuple[float, float]:
    """Milliseconds of form(), a loss, and of that and its backward."""
    for x in leaves:
        x.grad = None
    start = time.perf_counter()
    loss = form()
    middle = time.perf_counter()
    loss.backward()
    return (middle - start) * 1e3, (time.perf_counter() - start) * 1e3


def extra_memory(form: Callable[[], Tensor], leaves: Sequence[Tensor]) -> int:
    """Bytes that torch holds at most during form() and its backward, beyond what was there before and the gradients."""
    for x in leaves:
        x.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        form().backward()
    held = highest = 0
    events = (event for event in record.profiler.kineto_results.events() if event.name() == "[memory]")
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return max(highest - sum(x.grad.nbytes for x in leaves if x.grad is not None), 0)


class Traffic(TorchDispatchMode):
    """Counts the bytes that operators move: each reads its operands once and writes its results once.

    Views move nothing, and an axis of stride 0 is one element.
    """

    OVERWRITE = {"copy_", "fill_", "zero_"}
    MOVE_NOTHING = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_unsafe_view"}

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **kwargs or {})
        name = function._schema.name.rpartition("::")[2]
        if function.is_view or name in self.MOVE_NOTHING:
            return results
        operands = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)]
        self.bytes += sum(map(_bytes, operands[1:] if name in self.OVERWRITE else operands))
        self.bytes += sum(_bytes(x) for x in tree_leaves(results) if isinstance(x, Tensor))
        return results


def traffic(form: Callable[[], Tensor], leaves: Iterable[Tensor]) -> int:
    """Bytes that the operators of form() and its backward move."""
    for x in leaves:
        x.grad = None
    with Traffic() as counted:
        form().backward()
    return counted.bytes


def _bytes(x: Tensor) -> int:
    elements = x.element_size()
    for size, stride in zip(x.shape, x.stride(), strict=True):
        elements *= size if stride else min(size, 1)
    return elements
