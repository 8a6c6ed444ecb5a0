"""Every Triton kernel compiles for every target that we name, without a GPU: no spill, no local memory, 16-byte loads.

What is compiled is what the ops launch: their launches are recorded at the shapes of a noise suppressor, and each one
becomes a signature as Triton's own launcher would specialise it.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from abckd_kernels import backends  # noqa: E402
from abckd_kernels.ops import triton_layers  # noqa: E402
from abckd_kernels.ops.compress import triton as compress_kernels  # noqa: E402
from abckd_kernels.ops.tap import triton as tap_kernels  # noqa: E402

pytestmark = pytest.mark.skipif(backends.TRITON_INTERPRET, reason="the interpreter replaces what would be compiled")

TARGETS = [GPUTarget("cuda", arch, 32) for arch in (80, 90, 100, 120)] + [GPUTarget("hip", "gfx942", 64)]
POINTERS = {torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16", torch.float16: "*fp16",
            torch.int64: "*i64", torch.int8: "*i8"}  # fmt: skip
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Launches(list):
    """Stands in for `launch`: (kernel, positional arguments, constants, options) of each call."""

    def __call__(self, kernel, programs, like, *args, **constants):
        options = {"num_warps": constants.pop("num_warps", 4)}
        self.append((kernel, args, constants, options))


@pytest.fixture
def launches(monkeypatch, request):
    recorded = Launches()
    if "target" in request.fixturenames:
        monkeypatch.setattr(tap_kernels, "WARP", request.getfixturevalue("target").warp_size)
    for module in (tap_kernels, compress_kernels):
        monkeypatch.setattr(module, "launch", recorded)
    return recorded


def features(dtype, channels_last=False):
    layers = [torch.empty(2, channels, 200, 64, dtype=dtype) for channels in (32, 64, 64)]
    return [x.to(memory_format=torch.channels_last) for x in layers] if channels_last else layers


def specialise(value, path):
    """Type, constants and attributes of one argument, as Triton's launcher has them: 1 is a constant, 16 divides."""
    divisible = {path: [["tt.divisibility", 16]]}
    if isinstance(value, tuple):
        parts = [specialise(item, (*path, index)) for index, item in enumerate(value)]
        constants, attributes = ({k: v for part in parts for k, v in part[which].items()} for which in (1, 2))
        return tuple(part[0] for part in parts), constants, attributes
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype], {}, divisible
    if isinstance(value, float):
        return "fp64", {}, {}
    if value == 1:
        return "constexpr", {path: 1}, {}
    return "i32", {}, divisible if value % 16 == 0 else {}


def build(launch, target):
    kernel, args, constants, options = launch
    signature, fixed, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], fixed[(index,)] = "constexpr", constants[name]
        else:
            signature[name], more, known = specialise(args[index], (index,))
            fixed.update(more)
            attributes.update(known)
    return triton.compile(ASTSource(kernel, signature, fixed, attributes), target=target,
                          options=options | (triton_layers.OPTIONS if target.backend == "cuda" else {}))  # fmt: skip


def assert_no_spill(binary, target):
    if target.backend == "hip":
        text = binary.asm["amdgcn"]
        for field in ("vgpr_spill_count", "private_segment_fixed_size"):
            assert set(re.findall(rf"\.{field}:\s+(\d+)", text)) == {"0"}, field
        return
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        dump = [subprocess.run([CUOBJDUMP, option, file.name], capture_output=True, text=True, check=True).stdout
                for option in ("--dump-resource-usage", "--dump-sass")]  # fmt: skip
    usage, machine_code = dump
    assert re.findall(r"LOCAL:(\d+)", usage) == ["0"], usage
    assert "LDG" in machine_code and not re.search(r"\b(LDL|STL)\b", machine_code), "registers spill to local memory"


def load_widths(binary, target):
    """Bytes per thread of each load of global memory."""
    if target.backend == "hip":
        words = re.findall(r"(?:global|buffer)_load_(dwordx4|dwordx2|dword|u?short\S*|u?byte\S*)", binary.asm["amdgcn"])
        return [{"dwordx4": 16, "dwordx2": 8, "dword": 4}.get(word, 2) for word in words]
    loads = re.findall(r"ld\.global\S*?(?:\.v(\d))?\.b(\d+)\s", binary.asm["ptx"])
    return [int(count or 1) * int(bits) // 8 for count, bits in loads]


def compile_all(launches, target):
    assert launches
    for launch in launches:
        binary = build(launch, target)
        assert_no_spill(binary, target)
        yield launch[0], binary


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target.arch))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_tap_reads_features_in_16_bytes(launches, target, dtype, channels_last):
    xs = features(dtype, channels_last)
    maps, _ = tap_kernels.forward(xs, 2, False, None, 200)
    tap_kernels.backward(xs, xs, maps, [None] * 3, 2, None, 200)
    for kernel, binary in compile_all(launches, target):
        widths = load_widths(binary, target)
        backward = kernel is tap_kernels.backward_kernel
        tile = tap_kernels.Tile.of(xs[0])
        per_operand = tile.block_c * tile.block_p * xs[0].element_size() // (16 * tile.num_warps * tap_kernels.WARP)
        assert widths.count(16) >= per_operand * (2 if backward else 1), widths
        # Only the gradient of the map, 1/C of the bytes, is read in smaller pieces, before the loop over channels.
        assert backward or set(widths) == {16}, widths


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target.arch))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_tap_with_means_and_lengths(launches, target, dtype):
    xs, lengths = features(dtype), torch.tensor([200, 77])
    maps, means = tap_kernels.forward(xs, 1, True, lengths, 200)
    tap_kernels.backward([None] * 3, xs, maps, means, 1, lengths, 200)
    assert [launch[0] for launch in launches] == [
        tap_kernels.forward_kernel,
        tap_kernels.mean_kernel,
        tap_kernels.backward_kernel,
    ]
    for _, binary in compile_all(launches, target):
        assert 16 in load_widths(binary, target)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target.arch))
@pytest.mark.parametrize("per_frame", [False, True], ids=["sample", "frame"])
@pytest.mark.parametrize("grid", [[200, 64], [50, 24]], ids=["on the grid", "pooled"])
def test_compress(launches, target, per_frame, grid):
    students, teachers = ([torch.empty(2, 200, 64) for _ in range(count)] for count in (3, 6))
    lengths = torch.tensor([200, 77])
    mask = torch.ones(3, 6, dtype=torch.bool)
    compress_kernels.forward(students, teachers, None, mask, grid, per_frame, 0.1, lengths, 200, True)
    compress_kernels.backward(torch.empty(2, 3), torch.empty(2, 3, *grid), [200, 64] * 3, lengths, 200)
    for _, binary in compile_all(launches, target):
        if grid == [200, 64]:
            assert 16 in load_widths(binary, target)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target.arch))
@pytest.mark.parametrize("gradients", [False, True], ids=["evaluation", "training"])
def test_compress_with_learned_scores(launches, target, gradients):
    students, teachers = ([torch.empty(2, 200, 64) for _ in range(count)] for count in (3, 6))
    scores = torch.empty(2, 3, 6)
    compress_kernels.forward(students, teachers, scores, None, [200, 64], False, 0.1, None, 200, gradients)
    assert all(16 in load_widths(binary, target) for _, binary in compile_all(launches, target))


def test_one_launch_for_all_layers(launches):
    tap_kernels.forward(features(torch.float32), 2, False, None, 200)
    assert len(launches) == 1


def test_sizes_of_one_compile(launches):
    """Triton makes the number 1 a constant of the kernel: a single layer, channel, band or frame must still compile."""
    xs = [torch.empty(1, 1, 1)]
    maps, means = tap_kernels.forward(xs, 2, True, torch.tensor([1]), 1)
    tap_kernels.backward(xs, xs, maps, means, 2, torch.tensor([1]), 1)
    grid_maps = [torch.empty(1, 1, 1)]
    compress_kernels.forward(grid_maps, grid_maps, None, None, [1, 1], False, 1.0, torch.tensor([1]), 1, True)
    compress_kernels.backward(torch.empty(1, 1), torch.empty(1, 1, 1, 1), [1, 1], torch.tensor([1]), 1)
    assert len(list(compile_all(launches, TARGETS[1]))) == 5
