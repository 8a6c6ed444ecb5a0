"""The CUDA part of the extension as it was built: on a machine without a GPU it is there, and says what is missing."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from abckd_kernels import abc_loss, backends, use_backend
from abckd_verify.machines import compiled_cuda

extension = backends.extension()
with_cuda = pytest.mark.skipif(
    extension is None or not extension.has_cuda, reason="the extension was built without CUDA kernels"
)


def why_not_built() -> str | None:
    """Why the extension may lack CUDA kernels here, or None."""
    if torch.version.cuda is None:
        return "torch is a build without CUDA"
    if os.environ.get("ABCKD_BUILD_CUDA") == "0":
        return "ABCKD_BUILD_CUDA=0"
    return compiled_cuda.missing()


@pytest.mark.skipif(why_not_built() is not None, reason=str(why_not_built()))
def test_cuda_kernels_were_built_where_they_can_be():
    assert extension is not None and extension.has_cuda


def embedded(kind: str) -> set[str]:
    """Architectures whose machine code ("elf") or PTX ("ptx") the extension holds."""
    triton = pytest.importorskip("triton")
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    listing = subprocess.run([cuobjdump, f"--list-{kind}", extension.__file__], capture_output=True, text=True)
    return set(re.findall(r"sm_(\d+)", listing.stdout))


@with_cuda
def test_every_architecture_that_was_asked_for_is_there():
    asked = extension.build_info()["CUDA kernels"].removeprefix("for ").split()
    assert embedded("elf") == {name.removesuffix("+PTX").replace(".", "") for name in asked}
    assert embedded("ptx") == {name.removesuffix("+PTX").replace(".", "") for name in asked if name.endswith("+PTX")}


@pytest.mark.parametrize(
    "built, runs, fails",
    [
        ("8.0 9.0 10.0 12.0+PTX", ["8.0", "8.6", "9.0", "10.3", "12.0", "13.1"], ["7.5", "11.0"]),
        ("9.0", ["9.0"], ["8.0", "8.9", "10.0"]),
        ("8.6+PTX", ["8.6", "8.9", "9.0", "12.0"], ["8.0", "7.0"]),
    ],
)
def test_which_gpus_the_code_runs_on(built, runs, fails):
    def outcome(capabilities):
        return {backends.runs_on(built, *map(int, capability.split("."))) for capability in capabilities}

    assert outcome(runs) == {True} and outcome(fails) == {False}


@with_cuda
def test_a_gpu_without_code_is_left_to_triton(monkeypatch):
    old = SimpleNamespace(name="old GPU", major=7, minor=5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: old)
    monkeypatch.setattr(backends, "_gpu_without_code", backends._gpu_without_code.__wrapped__)  # not from memory
    assert {backends.choose(op, "cuda") for op in backends.ops()} == {"triton"}
    assert "old GPU has 7.5" in backends.why_not("tap_forward", "cuda", "cuda")


@with_cuda
def test_auto_prefers_cuda_to_triton():
    chosen = {(op.partition("_")[0], backends.choose(op, "cuda")) for op in backends.ops()}
    in_cpp = {(op, "cuda") for op in ("tap", "compress", "divergence", "spectral")}
    in_triton = {(op, "triton") for op in ("gram", "dots", "pointwise", "project", "pyramid", "correlation")}
    assert chosen == in_cpp | in_triton
    with use_backend("triton"):
        assert {backends.choose(op, "cuda") for op in backends.ops()} == {"triton"}


@with_cuda
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_torch_says_what_is_missing():
    with pytest.raises(RuntimeError, match="NVIDIA driver|CUDA"):
        abc_loss([torch.ones(1, 2, 3, device="cuda")], [torch.ones(1, 2, 3, device="cuda")])


@with_cuda
def test_cuda_can_be_forced_for_cuda_tensors_only():
    with use_backend("cuda"), pytest.raises(RuntimeError, match="serves cuda tensors only"):
        abc_loss([torch.ones(1, 2, 3)], [torch.ones(1, 2, 3)])


def test_nothing_but_the_bindings_includes_torch():
    root = Path(__file__).parents[1] / "csrc"
    including = [path for path in root.rglob("*.*") if re.search(r"#include <(torch|ATen|c10)/", path.read_text())]
    assert including and {path.parent for path in including} == {root / "torch"}


def test_importing_starts_no_cuda_context():
    code = "import abckd_kernels, torch; assert not torch.cuda.is_initialized()"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
