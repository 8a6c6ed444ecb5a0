"""A compiled kernel: what it takes from a multiprocessor, what its inner loop does, and what must hold of both."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from .. import ROOT
from . import machine_code
from .machine_code import Instruction, Loop
from .occupancy import occupancy

JOBS = 2  # compilers and disassemblers at once
CACHE = ROOT / "build" / "resources"


class ToolMissing(RuntimeError):
    """A compiler or disassembler isn't there; the message says which."""


@dataclass(frozen=True)
class Kernel:
    """threads: of a block, at most. stack: bytes of local memory that a thread takes, for spills and arrays alike."""

    backend: str
    name: str
    variant: str  # which of its compilations
    arch: str
    threads: int
    registers: int
    stack: int
    shared: int  # bytes per block
    code: list[Instruction] = field(repr=False)

    @cached_property
    def loops(self) -> list[Loop]:
        return machine_code.loops(self.code)

    @cached_property
    def inner_loop(self) -> Loop | None:
        return machine_code.inner_loop(self.code)

    @property
    def occupancy(self) -> float:
        return occupancy(self.arch, self.threads, self.registers, self.shared)

    @property
    def local_accesses(self) -> int:
        """Loads and stores of local memory: spills, or an array that registers can't hold."""
        return sum(one.local for one in self.code)

    @property
    def load_widths(self) -> Counter:
        """How many loads of global memory there are of each number of bytes per thread."""
        return Counter(one.loads for one in self.code if one.loads)

    @property
    def share_of_16(self) -> float | None:
        """Of the loads of global memory, those of 16 bytes or more."""
        return _share(self.load_widths.elements())

    @property
    def loop_share_of_16(self) -> float | None:
        return _share(self.inner_loop.loads) if self.inner_loop else None

    @property
    def instructions_per_load(self) -> float | None:
        """Instructions of the inner loop per load of 16 bytes in it."""
        loop = self.inner_loop
        return loop.instructions / loop.loads_of_16 if loop and loop.loads_of_16 else None

    @property
    def loop_barriers(self) -> int:
        """Barriers in loops that load global memory, at any depth."""
        return sum(one.barrier for number, one in enumerate(self.code) if number in self._in_loading_loops)

    @cached_property
    def _in_loading_loops(self) -> frozenset[int]:
        return frozenset().union(*(loop.body for loop in self.loops if loop.loads))

    @property
    def problems(self) -> list[str]:
        """A sentence for each thing that no kernel may do; barriers in loops are judged by who knows the loop."""
        found = []
        if self.stack:
            found.append(f"takes {self.stack} bytes of local memory per thread")
        if self.local_accesses:
            found.append(f"has {self.local_accesses} loads and stores of local memory")
        return [f"{self}: {sentence}" for sentence in found]

    @property
    def loop_problems(self) -> list[str]:
        """A sentence if threads wait for each other between loads."""
        if not self.loop_barriers:
            return []
        return [f"{self}: {self.loop_barriers} barriers in a loop that loads global memory"]

    def __str__(self) -> str:
        return f"{self.backend} {self.name} ({self.variant}) for {self.arch}"


def _share(widths) -> float | None:
    widths = list(widths)
    return sum(width >= 16 for width in widths) / len(widths) if widths else None


@cache
def nvidia_tool(name: str) -> str:
    """Path of one of NVIDIA's binary utilities, from triton's wheel or a toolkit. Raises ToolMissing."""
    try:
        import triton

        bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
        if bundled.exists():
            return str(bundled)
    except ImportError:
        pass
    if found := shutil.which(name):
        return found
    raise ToolMissing(f"{name} was not found; triton's wheel and the CUDA toolkit have it")


def dump(cubin: Path | str, what: str) -> str:
    """What `cuobjdump --dump-WHAT` prints."""
    command = [nvidia_tool("cuobjdump"), f"--dump-{what}", str(cubin)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def kept(name: str, key: Sequence[str | bytes], make: Callable[[], object]):
    """make(), or what it made before for this key, by the same reader: in build/resources, named by both."""
    hashed = hashlib.sha256("\0".join([name, _reader()]).encode())
    for part in key:
        hashed.update(part if isinstance(part, bytes) else part.encode())
    file = CACHE / f"read-{hashed.hexdigest()[:24]}.pickle"
    if file.exists():
        return pickle.loads(file.read_bytes())
    made = make()
    CACHE.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}")
    unfinished.write_bytes(pickle.dumps(made))
    unfinished.replace(file)
    return made


@cache
def _reader() -> str:
    """What reads machine code."""
    return "".join((Path(__file__).parent / name).read_text() for name in ("compiled.py", "machine_code.py"))
