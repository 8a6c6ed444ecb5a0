"""What results belong to, how memory is handed out, and the bytes that PyTorch's operators move."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from importlib.metadata import version

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import abckd_kernels
from abckd_kernels.backends import extension

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_malloc = "default"


def keep_memory() -> None:
    """From now on glibc's malloc keeps what is freed, as jemalloc and tcmalloc do; no other malloc is changed.

    By default it returns large blocks to the system, or not, depending on what was freed before; the same step then
    faults its pages in again, or not, at several times the cost of the step.
    """
    global _malloc
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        if libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, -1):
            _malloc = "keeps memory"


def machine(device: str = "cpu") -> dict[str, str]:
    """What a row of results belongs to."""
    with open("/proc/cpuinfo") as info:
        lines = [line.partition(":") for line in info]
    facts = {name.strip(): value.strip() for name, _, value in reversed(lines)}  # of the first processor
    built = extension()
    gpu = {} if device == "cpu" else {"gpu": torch.cuda.get_device_properties(0).name, "triton": version("triton")}
    return gpu | {
        "cpu": f"{facts.get('model name', 'unknown')}, {platform.machine()}",
        "threads": str(torch.get_num_threads()),
        "malloc": _malloc,
        "torch": torch.__version__,
        "torch kernels": torch_kernels(facts.get("flags", "").split()),
        "abckd_kernels": abckd_kernels.__version__,
        "instruction set": built.build_info()["CPU instruction set"] if built else "no extension",
    }


def torch_kernels(flags: list[str]) -> str:
    """The instruction sets of PyTorch's kernels on a processor with these flags: its own, and AMX in its products."""
    amx = {"amx_tile", "amx_bf16"} <= set(flags)
    return torch.backends.cpu.get_cpu_capability().lower() + (" with amx" if amx else "")


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


def traffic(work: Callable[[], object]) -> int:
    """Bytes that the operators of work() move."""
    with Traffic() as counted:
        work()
    return counted.bytes


def _bytes(x: Tensor) -> int:
    elements = x.element_size()
    for size, stride in zip(x.shape, x.stride(), strict=True):
        elements *= size if stride else min(size, 1)
    return elements
