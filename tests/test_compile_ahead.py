"""Every Triton kernel compiles for every target that we name, without a GPU: no spill, no local memory, 16-byte loads.

What is compiled is what the ops launch (abckd_verify.machines.compiled_triton); what is asserted is read from the machine
code.
"""

from __future__ import annotations

import re

import pytest
import torch

pytest.importorskip("triton")

from abckd_kernels import backends  # noqa: E402

if backends.TRITON_INTERPRET:
    pytest.skip("the interpreter replaces what would be compiled", allow_module_level=True)

from abckd_kernels.ops.compress import triton as compress_kernels  # noqa: E402
from abckd_kernels.ops.divergence import KINDS as DIVERGENCES  # noqa: E402
from abckd_kernels.ops.gram import AXES  # noqa: E402
from abckd_kernels.ops.gram import triton as gram_kernels  # noqa: E402
from abckd_kernels.ops.pointwise import KINDS  # noqa: E402
from abckd_kernels.ops.pointwise import triton as pointwise_kernels  # noqa: E402
from abckd_kernels.ops.spectral import triton as spectral_kernels  # noqa: E402
from abckd_kernels.ops.tap import triton as tap_kernels  # noqa: E402
from abckd_verify import resources  # noqa: E402
from abckd_verify.machines import compiled_triton  # noqa: E402
from abckd_verify.machines.compiled_triton import TARGETS  # noqa: E402
from abckd_verify.machines.occupancy import occupancy  # noqa: E402

GRAMS = [
    ("samples", torch.float32, False),
    ("channels", torch.float64, False),
    ("frames", torch.float32, False),
    ("frames", torch.bfloat16, True),
    ("samples_per_frame", torch.float16, False),
]
for_all_targets = pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target.arch))


@pytest.fixture
def launches(request):
    target = request.getfixturevalue("target") if "target" in request.fixturenames else TARGETS[0]
    with compiled_triton.recorded(target) as recorded:
        yield recorded


def compile_all(launches, target, variant="-"):
    assert launches
    kernels = compiled_triton.inspect(launches, target, variant)
    assert [sentence for kernel in kernels for sentence in resources.problems(kernel)] == []
    return [(launch[0], kernel) for launch, kernel in zip(launches, kernels, strict=True)]


@for_all_targets
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_tap_reads_features_in_16_bytes(launches, target, dtype, channels_last):
    compiled_triton.tap(dtype, channels_last)
    for kernel, compiled in compile_all(launches, target):
        backward = kernel is tap_kernels.backward_kernel
        tile = tap_kernels.Tile.of(compiled_triton.features(dtype, channels_last)[0])
        per_operand = tile.block_c * tile.block_p * dtype.itemsize // (16 * compiled.threads)
        assert compiled.load_widths[16] >= per_operand * (2 if backward else 1), compiled.load_widths
        assert compiled.loop_share_of_16 == 1
        # Only the gradient of the map, 1/C of the bytes, is read in smaller pieces, before the loop over channels.
        assert backward or compiled.share_of_16 == 1, compiled.load_widths
        assert compiled.loop_barriers == 0


@for_all_targets
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_tap_with_means_and_lengths(launches, target, dtype):
    compiled_triton.tap_with_means_and_lengths(dtype)
    assert [launch[0] for launch in launches] == [
        tap_kernels.forward_kernel,
        tap_kernels.mean_kernel,
        tap_kernels.backward_kernel,
    ]
    for _, compiled in compile_all(launches, target, "means"):
        assert compiled.load_widths[16]


@for_all_targets
@pytest.mark.parametrize("per_frame", [False, True], ids=["sample", "frame"])
@pytest.mark.parametrize("grid", [[200, 64], [50, 24]], ids=["on the grid", "pooled"])
def test_compress(launches, target, per_frame, grid):
    compiled_triton.compress(grid, per_frame)
    for _, compiled in compile_all(launches, target):
        if grid == [200, 64]:
            assert compiled.load_widths[16]


@for_all_targets
@pytest.mark.parametrize("gradients", [False, True], ids=["evaluation", "training"])
def test_compress_with_learned_scores(launches, target, gradients):
    compiled_triton.compress_with_learned_scores(gradients)
    assert all(compiled.load_widths[16] for _, compiled in compile_all(launches, target))


@for_all_targets
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_spectral_reads_pairs_in_16_bytes(launches, target, dtype):
    compiled_triton.spectral(dtype)
    compiled = [kernel for _, kernel in compile_all(launches, target)]
    for launch, kernel, operands in zip(launches, compiled, (2, 0, 2), strict=True):
        per_operand = launch[2]["BLOCK"] * dtype.itemsize // (16 * kernel.threads)
        assert kernel.load_widths[16] >= per_operand * operands, (kernel.name, kernel.load_widths)


@for_all_targets
def test_spectral_with_lengths(launches, target):
    compiled_triton.spectral(torch.float32, True, torch.tensor([200, 77]))
    compiled_triton.spectral(torch.float64, False, torch.tensor([200, 77]))
    assert len(compile_all(launches, target)) == 6


@for_all_targets
@pytest.mark.parametrize("kind", range(3), ids=DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", compiled_triton.LOGITS.values(), ids=compiled_triton.LOGITS)
def test_divergence(launches, target, kind, dtype, shape):
    """No barriers in the loop over classes; 16 bytes at a time where rows or planes are aligned."""
    compiled_triton.divergence(dtype, kind, shape)
    for _, compiled in compile_all(launches, target):
        assert compiled.loop_barriers == 0
        if shape == compiled_triton.LOGITS["mask"]:
            assert compiled.loop_share_of_16 == 1


@for_all_targets
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("kind", KINDS)
def test_pointwise_reads_features_in_16_bytes(launches, target, kind, dtype, channels_last):
    compiled_triton.pointwise(kind, dtype, channels_last)
    for kernel, compiled in compile_all(launches, target):
        if kernel is not pointwise_kernels.add_kernel:
            unrolled = compiled.loop_share_of_16 is None  # as LLVM does for AMD
            at_least = 2 * pointwise_kernels.STEPS if unrolled else 2
            assert compiled.load_widths[16] >= at_least and compiled.loop_share_of_16 in (1, None), compiled.load_widths
            assert not compiled.loop_barriers


@for_all_targets
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_pointwise_with_lengths(launches, target, kind, dtype):
    compiled_triton.pointwise(kind, dtype, lengths=torch.tensor([200, 77]))
    names = ("forward_kernel", "add_kernel", "backward_kernel")
    assert [launch[0] for launch in launches] == [getattr(pointwise_kernels, name) for name in names]
    compile_all(launches, target, "lengths")


@for_all_targets
@pytest.mark.parametrize("axis, dtype, last", GRAMS, ids=lambda value: str(value).removeprefix("torch."))
def test_gram(launches, target, axis, dtype, last):
    compiled_triton.gram(dtype, axis, last)
    for _, compiled in compile_all(launches, target, axis):
        assert target.backend == "hip" or compiled.load_widths[16] + compiled.load_widths[8]


@for_all_targets
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", compiled_triton.LOGITS)
def test_correlation(launches, target, name, dtype):
    compiled_triton.correlation(dtype, compiled_triton.LOGITS[name])
    names = ("row_kernel", "class_kernel", "backward_kernel")
    assert [launch[0].__name__ for launch in launches] == 2 * list(names)
    compile_all(launches, target, name)


@for_all_targets
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_pyramid(launches, target, dtype, channels_last):
    for lengths in (None, torch.tensor([200, 77])):
        compiled_triton.pyramid(dtype, channels_last, lengths)
    assert [launch[0].__name__ for launch in launches] == 2 * ["forward_kernel", "backward_kernel"]
    compile_all(launches, target)


@for_all_targets
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_dots(launches, target, dtype):
    compiled_triton.dots(dtype)
    for _, compiled in compile_all(launches, target):
        # 512 positions at a time for float64 sums: 2 for each of AMD's 256 threads, still neighbours.
        assert compiled.load_widths[16] + compiled.load_widths[8] + (target.backend == "hip")


@for_all_targets
def test_gram_of_32_rows(launches, target):
    """Between the tiles of samples and of frames."""
    x = torch.empty(2, 32, 200, 64)
    for shifted in (False, True):
        gram_kernels.backward(gram_kernels.forward(x, "channels", shifted), x, "channels", shifted)
    compile_all(launches, target)


def test_one_launch_for_all_layers(launches):
    tap_kernels.forward(compiled_triton.features(torch.float32), 2, False, None, 200)
    assert len(launches) == 1


def test_sizes_of_one_compile(launches):
    """A single layer, channel, band or frame must still compile; Triton would make an int of 1 a constant."""
    xs = [torch.empty(1, 1, 1)]
    maps, means = tap_kernels.forward(xs, 2, True, torch.tensor([1]), 1)
    tap_kernels.backward(xs, xs, maps, means, 2, torch.tensor([1]), 1)
    grid_maps = [torch.empty(1, 1, 1)]
    one = torch.tensor([1])
    distances, *saved = compress_kernels.forward(grid_maps, grid_maps, None, None, [1, 1], False, 1.0, one, 1, True)
    compress_kernels.backward(distances, None, *saved, [1, 1], one, 1, [True, False])
    spectrum = torch.empty(1, 1, 1, 2)
    spectral_kernels.forward(spectrum, spectrum, 0.3, 1e-12, torch.tensor([1]), 1)
    spectral_kernels.backward(torch.empty(1), torch.empty(1), spectrum, spectrum, 0.3, 1e-12, torch.tensor([1]), 1)
    operands = xs[0], xs[0], xs[0], None, "heteroscedastic", 1.0, torch.tensor([1]), 1
    pointwise_kernels.backward(pointwise_kernels.forward(*operands), *operands)
    x = torch.empty(1, 1, 1)
    for axis in AXES:
        gram_kernels.backward(torch.empty(1, 1, 1), x, axis, True)
        gram_kernels.forward(x, axis, True)
    kernels = compiled_triton.inspect(launches, TARGETS[2])
    assert len(kernels) == 10 + 2 * 4
    assert [kernel.problems for kernel in kernels] == [[]] * len(kernels)


def test_occupancy_is_llvms(launches):
    """Without shared memory, of which LLVM doesn't know: Triton asks for it at launch."""
    target = TARGETS[-1]
    compiled_triton.tap_with_means_and_lengths(torch.float16)
    kernels = compiled_triton.inspect(launches, target)
    for launch, kernel in zip(launches, kernels, strict=True):
        text = compiled_triton.build(launch, target).asm["amdgcn"]
        warps = int(re.search(r"; Occupancy: (\d+)", text).group(1))
        assert occupancy(kernel.arch, 256, kernel.registers, 0) * 8 == warps, kernel


def test_a_spill_is_found(launches):
    """A kernel that is given too few registers fails what all others are held to."""
    compiled_triton.tap_with_means_and_lengths(torch.float64, channels_last=True)
    (spilling,) = compiled_triton.inspect(launches[:1], TARGETS[2], "means", maxnreg=24)
    assert spilling.stack > 0
    assert spilling.local_accesses > 0
    assert len(spilling.problems) == 2
