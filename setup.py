"""Builds the extension abckd_kernels._C; everything else about the package is in pyproject.toml.

ABCKD_BUILD_CUDA=auto|0|1: auto builds the CUDA kernels when nvcc and a CUDA build of torch are there (with or without
a GPU), 1 makes their absence an error, 0 leaves them out. Without a C++ compiler, or when it fails, the installation
succeeds without the extension, and one sentence says what is missing: the reference and Triton backends need none.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
MUST_BUILD = os.environ.get("ABCKD_BUILD_CUDA") == "1"
DEFAULT_ARCHITECTURES = "8.0;9.0;10.0;12.0+PTX"


def say(sentence: str) -> None:
    print(f"abckd_kernels: {sentence}", file=sys.stderr)


def give_up(reason: str) -> dict:
    """Go on without the extension, unless the user asked for CUDA kernels. Returns no arguments for setup()."""
    if MUST_BUILD:
        raise SystemExit(f"ABCKD_BUILD_CUDA=1, but the extension can't be built: {reason}")
    say(f"the C++ extension was not built: {reason}. The reference and Triton backends need none.")
    return {}


def sources(folder: str, pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / folder).glob(pattern))


def torch_sources() -> list[str]:
    """What includes torch, the file that takes longest first."""
    files = [name for name in sources("csrc/torch", "*.cpp") if not name.endswith("/cuda.cpp")]
    return sorted(files, key=lambda name: not name.endswith("/module.cpp"))


def find_cuda() -> tuple[Path | None, str]:
    """The toolkit's folder and "", or None and what is missing. nvcc on PATH may be a wrapper."""
    import torch

    if torch.version.cuda is None:
        return None, "torch is a build without CUDA"
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda", "/opt/cuda"]
    if nvcc := shutil.which("nvcc"):
        candidates.append(Path(nvcc).resolve().parent.parent)
    unfit = ""
    for folder in filter(None, candidates):
        nvcc = Path(folder) / "bin" / "nvcc"
        if not nvcc.exists() or not (Path(folder) / "include" / "cuda_runtime.h").exists():
            continue
        said = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
        version = re.search(r"release (\d+)\.", said)
        if version and version[1] == torch.version.cuda.partition(".")[0]:
            return Path(folder), ""
        unfit = f"; the nvcc in {folder} is {version[1] if version else 'of an unknown version'}"
    return None, f"no CUDA {torch.version.cuda} toolkit with nvcc and headers was found{unfit}; set CUDA_HOME"


def cuda_sources() -> list[str]:
    """The CUDA files to build: none where ABCKD_BUILD_CUDA or this machine says so."""
    wish = os.environ.get("ABCKD_BUILD_CUDA", "auto")
    if wish not in ("auto", "0", "1"):
        raise SystemExit(f"ABCKD_BUILD_CUDA: expected auto, 0 or 1, got {wish!r}")
    if wish == "0":
        return []
    home, missing = find_cuda()
    if missing:
        if wish == "1":
            raise SystemExit(f"ABCKD_BUILD_CUDA=1, but the CUDA kernels can't be built: {missing}")
        say(f"CUDA kernels were not built: {missing}. CUDA tensors are served by Triton.")
        return []
    os.environ["CUDA_HOME"] = str(home)
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHITECTURES)
    return [*sources("csrc/cuda", "*.cu"), "csrc/torch/cuda.cpp"]


def extension_options() -> dict:
    """Arguments of setup() that build the extension, or none where that is not possible."""
    # pip builds in an environment of its own; the extension must be built with the torch that will load it.
    sys.path.append(sysconfig.get_path("platlib"))
    try:
        gpu_files = cuda_sources()
        from torch.utils import cpp_extension  # behind cuda_sources: it reads CUDA_HOME when imported
    except ImportError as error:
        return give_up(f"install torch first, it can't be imported ({error})")
    if not any(shutil.which(name) for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name):
        return give_up("no C++ compiler was found")
    flags = ["-O3", "-g0", "-fvisibility=hidden"]
    if sys.platform == "linux":  # torch's threads are OpenMP's there; the two warnings are about GCC's own headers
        flags += ["-fopenmp", "-Wno-psabi", "-Wno-maybe-uninitialized"]
    if platform.machine() in ("x86_64", "AMD64"):
        flags.append("-DABCKD_X86")

    def extension(gpu_files: list[str]):
        architectures = os.environ["TORCH_CUDA_ARCH_LIST"].replace(";", " ") if gpu_files else ""
        kind = cpp_extension.CUDAExtension if gpu_files else cpp_extension.CppExtension
        return kind(
            "abckd_kernels._C",
            [*torch_sources(), *sources("csrc/cpu", "*.cpp"), *gpu_files],
            include_dirs=[str(ROOT / "csrc" / "include")],
            define_macros=[("ABCKD_CUDA_ARCHITECTURES", f'"{architectures}"')],
            extra_compile_args={"cxx": flags, "nvcc": ["-O3"]},
            optional=not MUST_BUILD,
        )

    class Build(cpp_extension.BuildExtension):
        def run(self):
            inplace = self.inplace  # a run that fails leaves this and the compiler in disorder
            try:
                return super().run()
            except Exception as error:
                if not gpu_files or MUST_BUILD:
                    return self.go_on_without(error)
                say(f"CUDA kernels were not built: the compiler failed: {error}")
            vars(self.extensions[0]).update(vars(extension([])))
            self.inplace, self.compiler = inplace, None
            try:
                super().run()
            except Exception as error:
                self.go_on_without(error)

        def go_on_without(self, error: Exception):
            give_up(f"the compiler failed: {error}")
            for module in self.extensions:
                module.optional = True

    return {
        "ext_modules": [extension(gpu_files)],
        "cmdclass": {"build_ext": Build.with_options(use_ninja=shutil.which("ninja") is not None)},
    }


setup(**extension_options())
