"""A SIMT machine on the CPU: builds CUDA sources with g++ and runs them, checked and counted (README.md).

path = emulator.build("scale", kernels=["scale.cu"])
library = emulator.Library(path)
with library.buffers(("x", x.data_ptr(), x.nbytes, False), ("y", y.data_ptr(), y.nbytes, True)):
    library.call("scale", ctypes.c_void_p(x.data_ptr()), ...)  # extern "C", returns simt::message_of(...)
library.counters()["scale_kernel<float>"]["load_bytes"]
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from ... import ROOT

HERE = Path(__file__).parent
INCLUDE = HERE / "include"
PLANTED = HERE / "planted"
CACHE = ROOT / "build" / "simt"
JOBS = 2

COMMON = ("-std=c++17", "-g1", "-fPIC", "-fno-omit-frame-pointer")
if platform.machine() == "aarch64":
    COMMON += ("-mbranch-protection=none",)  # return addresses tell callers apart: they must be the same on every stack
# Every access stays one access: no merging, no vectors, no second copy of an instruction, no calls in place of loops.
KERNEL = (
    *("-x", "c++", "-O1", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas"),
    *("-fno-thread-jumps", "-fno-tree-vectorize", "-fno-tree-slp-vectorize", "-fno-store-merging"),
    *("-fno-tree-loop-distribute-patterns", "-fno-optimize-sibling-calls"),
    *("-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"),
    "-fsanitize=bounds-strict,signed-integer-overflow,shift,integer-divide-by-zero",
    "-fsanitize-coverage=trace-pc",
)
PLAIN = ("-O2",)
REDEFINED = [f"--redefine-sym={name}=simt_{name}" for name in ("memcpy", "memmove", "memset")]


class Error(RuntimeError):
    """What a launch did wrong, as the emulator says it."""


class Unavailable(RuntimeError):
    """This machine can't build for the emulator, and why."""


def why_unavailable() -> str | None:
    if not sys.platform.startswith("linux"):
        return f"the SIMT emulator needs Linux, this is {sys.platform}"
    missing = [tool for tool in ("g++", "objcopy") if shutil.which(tool) is None]
    return f"the SIMT emulator needs {' and '.join(missing)}, not found on PATH" if missing else None


def build(
    name: str,
    kernels: Iterable[Path | str],
    plain: Iterable[Path | str] = (),
    include: Iterable[Path | str] = (),
    kernel_flags: Sequence[str] = (),
    plain_flags: Sequence[str] = (),
    link_flags: Sequence[str] = (),
) -> Path:
    """Compile `kernels` with the emulator's headers and instrumentation, `plain` (bindings) with its headers only, and
    link both with the runtime. The result is found again while sources, headers, flags and compiler are the same."""
    if reason := why_unavailable():
        raise Unavailable(reason)
    includes = [f"-I{path}" for path in (INCLUDE, *include)]
    units = [(Path(path), (*COMMON, *KERNEL, *includes, *kernel_flags), REDEFINED) for path in kernels]
    units += [(Path(path), (*COMMON, *PLAIN, *includes, *plain_flags), []) for path in plain]
    units += [(path, (*COMMON, *PLAIN, "-Wall", "-Wextra"), []) for path in sorted((HERE / "runtime").glob("*.cpp"))]
    CACHE.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(JOBS) as pool:
        objects = list(pool.map(lambda unit: compile_unit(*unit), units))
    # Kernels come first: of an inline function that several files have, the linker keeps the first copy.
    library = CACHE / f"{name}-{digest([*map(str, objects), *link_flags])}.so"
    if not library.exists():
        link = ("-shared", "-Wl,-Bsymbolic-functions", *map(str, objects), *link_flags, "-ldl")
        make(library, lambda path: run("g++", *link, "-o", path))
    return library


def compile_unit(source: Path, flags: Sequence[str], redefined: Sequence[str]) -> Path:
    """The object file of one source, named by the hash of all that it is made of."""
    source = source.resolve()
    command = digest([compiler(), str(source), *flags])
    record = CACHE / f"{source.stem}-{command}.json"  # the files that it was made of when it was last compiled
    if record.exists():
        files = json.loads(record.read_text())
        built = CACHE / f"{source.stem}-{digest([command, *map(fingerprint, files)])}.o"
        if built.exists():
            return built
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        made, dependencies = Path(folder) / "made.o", Path(folder) / "made.d"
        run("g++", *flags, "-c", source, "-o", made, "-MD", "-MF", dependencies, "-MT", "made")
        if redefined:
            run("objcopy", *redefined, made)
        files = sorted(set(dependencies.read_text().replace("\\\n", " ").split()[1:]))
        built = CACHE / f"{source.stem}-{digest([command, *map(fingerprint, files)])}.o"
        os.replace(made, built)
        make(record, lambda path: Path(path).write_text(json.dumps(files)))
    return built


def make(path: Path, write) -> None:
    """Let `write` make the file under another name, so that no one sees half of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    os.close(handle)
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def run(*command) -> str:
    command = [str(part) for part in command]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\nfailed:\n{result.stderr}")
    return result.stdout


@cache
def compiler() -> str:
    return run("g++", "--version")


def digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def fingerprint(path: str) -> str:
    """The content of a file of ours; of others (torch has thousands), size and time."""
    file = Path(path)
    if not file.exists():
        return f"{path} is gone"
    if file.is_relative_to(ROOT) and ".venv" not in file.parts:
        return path + hashlib.sha256(file.read_bytes()).hexdigest()
    status = file.stat()
    return f"{path} {status.st_size} {status.st_mtime_ns}"


class Library:
    """A library made by build(). Buffers, seed and counters belong to it, and to whoever else loads the same file."""

    def __init__(self, path: Path):
        self.functions = functions = ctypes.CDLL(str(path))
        functions.simt_counters.restype = ctypes.c_char_p
        functions.simt_leave_out_barrier.argtypes = [ctypes.c_char_p, ctypes.c_int]
        functions.simt_set_seed.argtypes = [ctypes.c_uint64]
        functions.simt_register_buffer.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_bool]

    def call(self, function: str, *args) -> None:
        """Call an extern "C" function that returns null, or the message of an error, which is raised."""
        called = self.functions[function]
        called.restype = ctypes.c_char_p
        message = called(*args)
        if message is not None:
            raise Error(message.decode())

    def set_seed(self, seed: int) -> None:
        """Blocks and threads of the launches to come run in another order."""
        self.functions.simt_set_seed(seed)

    @contextmanager
    def without_barrier(self, file: str, line: int):
        """Launches run meanwhile as if the barrier on that line of a file, named by its end, were not there."""
        self.functions.simt_leave_out_barrier(file.encode(), line)
        try:
            yield
        finally:
            self.functions.simt_leave_out_barrier(None, 0)

    def register(self, name: str, address: int, size: int, writable: bool) -> int:
        return self.functions.simt_register_buffer(name.encode(), address, size, writable)

    def unregister(self, buffer: int) -> None:
        self.functions.simt_unregister_buffer(buffer)

    @contextmanager
    def buffers(self, *buffers: tuple[str, int, int, bool]):
        """Global memory that kernels may touch meanwhile: (name, address, bytes, writable) each."""
        registered = [self.register(*buffer) for buffer in buffers]
        try:
            yield
        finally:
            for buffer in registered:
                self.unregister(buffer)

    def reset_counters(self) -> None:
        self.functions.simt_reset_counters()

    def counters(self) -> dict[str, dict[str, int]]:
        """Per kernel, since the last reset; include/simt.h says what they mean."""
        return json.loads(self.functions.simt_counters())
