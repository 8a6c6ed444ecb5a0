"""The library's ops with its CUDA kernels in the emulator: what they compute, and what they move, without a GPU."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path

import torch
from torch.utils import cpp_extension

import abckd_kernels  # noqa: F401 - declares the ops

from ... import ROOT
from . import HERE, Library, Unavailable, build

OPS = ("tap", "compress", "divergence", "spectral")  # that have CUDA kernels


@cache
def load() -> Library:
    """From now on the ops run the emulated CUDA kernels for CPU tensors, under the backend "cpu", in this process.

    Raises Unavailable where there is no g++, or no extension: without it no op has a backend "cpu".
    """
    if abckd_kernels.backends.extension() is None:
        raise Unavailable(abckd_kernels.backends.EXTENSION_ERROR)
    folders = [Path(path) for path in cpp_extension.library_paths()]
    path = build(
        "emulated",
        kernels=sorted((ROOT / "csrc" / "cuda").glob("*.cu")),
        plain=[HERE / "binding.cpp", *(ROOT / "csrc" / "torch" / f"{op}.cpp" for op in OPS)],
        include=[ROOT, ROOT / "csrc" / "include", *cpp_extension.include_paths()],
        plain_flags=["-std=c++20", "-w"],
        link_flags=[f"-L{folder}" for folder in folders] + ["-ltorch", "-ltorch_cpu", "-lc10"],
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*overrid.*")
        torch.ops.load_library(str(path))
    return Library(path)
