"""The CUDA kernels, compiled for every architecture that we name, without a GPU and without torch.

Cubins are kept in build/resources, under a name that changes with the sources, the compiler and its flags.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path

from .. import ROOT
from . import machine_code
from .compiled import CACHE, JOBS, Kernel, ToolMissing, dump
from .occupancy import KB

ARCHITECTURES = ("sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
# What torch's build of the extension gives nvcc, as far as it changes device code.
FLAGS = ("-O3", "-std=c++20", "--expt-relaxed-constexpr", f"-I{ROOT / 'csrc' / 'include'}")
# Shared memory that is counted among a kernel's own although its author didn't ask for it.
_RESERVED = {"sm_80": 0, "sm_86": 0}
_ELEMENTS = {"float": "f32", "double": "f64", "__half": "f16", "__nv_bfloat16": "bf16"}


def sources() -> list[Path]:
    return sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


def toolkits() -> list[Path]:
    """Where a CUDA toolkit may be, the likeliest first."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda", "/opt/cuda"]
    return [Path(home) for home in homes if home]


@cache
def find_nvcc() -> Path:
    """Raises ToolMissing."""
    candidates = [home / "bin" / "nvcc" for home in toolkits()]
    candidates += [Path(found) for found in [shutil.which("nvcc")] if found]
    for nvcc in candidates:
        if nvcc.exists():
            return nvcc
    raise ToolMissing("no nvcc was found: set CUDA_HOME, or install the CUDA toolkit")


@cache
def nvcc_version() -> str:
    """The compiler's own line about its version, such as "V13.0.88"."""
    text = subprocess.run([find_nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V[\d.]+", text).group()


def missing() -> str | None:
    """Why there is nothing to inspect, or None."""
    if not sources():
        return "this version has no CUDA kernels"
    try:
        find_nvcc()
    except ToolMissing as error:
        return str(error)
    return None


def build_all(architectures=ARCHITECTURES) -> dict[tuple[str, str], Future]:
    """The kernels of each source and architecture, as futures of lists, JOBS at a time."""
    pool = ThreadPoolExecutor(JOBS)
    futures = {(source.name, arch): pool.submit(build, source, arch) for source in sources() for arch in architectures}
    pool.shutdown(wait=False)
    return futures


def build(source: Path, arch: str, *flags: str) -> list[Kernel]:
    """Kernels of one file. Raises ToolMissing, and RuntimeError with the compiler's words."""
    return read(compile_cubin(source, arch, *flags), arch)


def compile_cubin(source: Path, arch: str, *flags: str) -> Path:
    key = hashlib.sha256("\0".join([nvcc_version(), arch, *FLAGS, *flags]).encode())
    for path in [source, *_headers()]:
        key.update(path.read_bytes())
    name = f"{source.stem}-{arch}"
    cubin = CACHE / f"{name}-{key.hexdigest()[:16]}.cubin"
    if cubin.exists():
        return cubin
    CACHE.mkdir(parents=True, exist_ok=True)
    unfinished = cubin.with_suffix(f".{os.getpid()}")
    command = [find_nvcc(), "-cubin", f"-arch={arch}", *FLAGS, *flags, source, "-o", unfinished]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"nvcc failed on {source.name} for {arch}:\n{result.stderr[-4000:]}")
    for old in CACHE.glob(f"{name}-*.cubin"):
        old.unlink(missing_ok=True)
    unfinished.rename(cubin)
    return cubin


def _headers() -> list[Path]:
    return sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cuh"))


def read(cubin: Path, arch: str) -> list[Kernel]:
    """The kernels of a cubin."""
    code = machine_code.read_sass(dump(cubin, "sass"))
    usage = dict(re.findall(r"Function (\S+):\s+(REG:.*)", dump(cubin, "resource-usage")))
    threads = _most_threads(dump(cubin, "elf"))
    names = _readable(list(usage))
    kernels = []
    for symbol, line in usage.items():
        amounts = dict(re.findall(r"(\w+):(\d+)", line))
        name, _, variant = names[symbol].partition("<")
        kernels.append(
            Kernel(
                "cuda",
                name,
                variant.removesuffix(">") or "-",
                arch,
                threads=threads.get(symbol, 1024),
                registers=int(amounts["REG"]),
                stack=int(amounts["STACK"]) + int(amounts["LOCAL"]),
                shared=max(0, int(amounts["SHARED"]) - _RESERVED.get(arch, KB)),
                code=code[symbol],
            )
        )
    return sorted(kernels, key=lambda kernel: (kernel.name, kernel.variant))


def _most_threads(elf: str) -> dict[str, int]:
    """Threads of a block, from __launch_bounds__, by symbol."""
    found = {}
    for part in re.split(r"^\.nv\.info\.", elf, flags=re.MULTILINE)[1:]:
        if sizes := re.search(r"EIATTR_MAX_THREADS\s+Format:\s+\S+\s+Value:\s+(\S+) (\S+) (\S+)", part):
            x, y, z = (int(size, 0) for size in sizes.groups())
            found[part.split(None, 1)[0]] = x * y * z
    return found


def _readable(symbols: list[str]) -> dict[str, str]:
    """Names that people write, by symbol."""
    filter_ = shutil.which("cu++filt") or shutil.which("c++filt")
    if filter_ is None or not symbols:
        return {symbol: symbol for symbol in symbols}
    lines = subprocess.run([filter_, *symbols], capture_output=True, text=True, check=True).stdout.splitlines()
    return {symbol: short(line) for symbol, line in zip(symbols, lines, strict=True)}


def short(signature: str) -> str:
    """kernel<f32, true> for void abckd::cuda::kernel<float, true>(...)."""
    name = re.sub(r"\(anonymous namespace\)::|abckd::|cuda::", "", signature.removeprefix("void "))
    name = re.sub(r"\((\w+)\)(?=\d)", "", name)  # (int)4, a template's number
    for element, abbreviation in _ELEMENTS.items():
        name = re.sub(rf"\b{element}\b", abbreviation, name)
    depth = 0
    for place, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:place]
    return name
