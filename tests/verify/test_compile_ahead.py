"""Every Triton kernel compiles for every target that we name, without a GPU: no spill, no local memory, wide loads.

What is compiled is what the Specs' cases launch: all of them for an NVIDIA and an AMD target, one case per kernel for
the others; what is asserted is read from the machine code.
"""

from __future__ import annotations

import re

import pytest
import torch

pytest.importorskip("triton")

from abckd_kernels import backends  # noqa: E402

if backends.TRITON_INTERPRET:
    pytest.skip("the interpreter replaces what would be compiled", allow_module_level=True)

from abckd_kernels.ops.pointwise.triton import STEPS  # noqa: E402
from abckd_kernels.ops.tap.triton import Tile  # noqa: E402
from abckd_verify import resources  # noqa: E402
from abckd_verify.machines import compiled, compiled_triton  # noqa: E402
from abckd_verify.machines.compiled_triton import EVERYTHING, TARGETS  # noqa: E402
from abckd_verify.machines.occupancy import occupancy  # noqa: E402
from abckd_verify.ops import SPECS  # noqa: E402
from abckd_verify.spec import Case, cases  # noqa: E402

SM_90, GFX942 = EVERYTHING
SINGLE_AND_BFLOAT16 = (torch.float32, torch.bfloat16)


# ------------------------------------------------------------------------ what holds beyond the gates of all kernels


def tap(case, launch, compiled):
    """Features are read in 16 bytes, and no thread waits for another between loads."""
    if case.options.get("means", True):
        assert compiled.load_widths[16] or case.layout != "contiguous"
    if case.options.get("means", True) or case.dtype not in SINGLE_AND_BFLOAT16:
        return
    backward = launch[0].__name__ == "backward_kernel"
    tile = Tile.of(SPECS["tap"].make(case, values="empty")["features"][0])
    per_operand = tile.block_c * tile.block_p * case.dtype.itemsize // (16 * compiled.threads)
    assert compiled.load_widths[16] >= per_operand * (2 if backward else 1), compiled.load_widths
    assert compiled.loop_share_of_16 == 1
    # Only the gradient of the map, 1/C of the bytes, is read in smaller pieces, before the loop over channels.
    assert backward or compiled.share_of_16 == 1, compiled.load_widths
    assert compiled.loop_barriers == 0


def compress(case, launch, compiled):
    assert compiled.load_widths[16] or case.options.get("grid") or case.dtype == torch.float64


def spectral(case, launch, compiled):
    """Pairs are read in 16 bytes."""
    if case.options.get("lengths") or launch[0].__name__ == "mean_kernel" or case.dtype == torch.float64:
        return
    per_operand = launch[2]["BLOCK"] * case.dtype.itemsize // (16 * compiled.threads)
    assert compiled.load_widths[16] >= per_operand * 2, (compiled.name, compiled.load_widths)


def divergence(case, launch, compiled):
    """No barriers in the loop over classes; 16 bytes at a time where planes are aligned."""
    assert compiled.loop_barriers == 0
    if "mask" in case.name and case.dtype in SINGLE_AND_BFLOAT16:
        assert compiled.loop_share_of_16 == 1


def pointwise(case, launch, compiled):
    if case.options.get("lengths") or launch[0].__name__ == "add_kernel":
        return
    unrolled = compiled.loop_share_of_16 is None  # as LLVM does for AMD
    at_least = 2 * STEPS if unrolled else 2
    assert compiled.load_widths[16] >= at_least and compiled.loop_share_of_16 in (1, None), compiled.load_widths
    assert not compiled.loop_barriers


def matrices(case, launch, compiled):
    # 512 positions at a time for float64 sums: 2 for each of AMD's 256 threads, still neighbours.
    assert compiled.arch.startswith("gfx") or compiled.load_widths[16] + compiled.load_widths[8]


BEYOND = {"tap": tap, "compress": compress, "spectral": spectral, "divergence": divergence, "pointwise": pointwise,
          "gram": matrices, "dots": matrices}  # fmt: skip


# ------------------------------------------------------------------------------------------------ all cases


def _id(value):
    return str(value.arch) if hasattr(value, "arch") else str(value) if isinstance(value, Case) else value.name


@pytest.mark.parametrize(
    "spec, case, target",
    [(spec, case, target) for target in TARGETS for spec, case in compiled_triton.cases(target)],
    ids=_id,
)
def test_compiles(spec, case, target):
    launches = compiled_triton.launches(spec, case, target)
    kernels = compiled_triton.inspect(launches, target, str(case))
    assert kernels and [sentence for kernel in kernels for sentence in resources.problems(kernel)] == []
    for launch, kernel in zip(launches, kernels, strict=True):
        BEYOND.get(spec.name, lambda *_: None)(case, launch, kernel)


@pytest.mark.parametrize("target", TARGETS, ids=_id)
def test_every_target_gets_every_kernel(target):
    found = {
        (spec.name, launch[0].__name__)
        for spec, case in compiled_triton.cases(target)
        for launch in compiled_triton.launches(spec, case, target)
    }
    assert found == {(spec.name, kernel) for spec in SPECS.values() for kernel in spec.launches["triton"]}


def test_one_launch_for_all_layers():
    spec = SPECS["tap"]
    assert [launch[0].__name__ for launch in compiled_triton.launches(spec, spec.compiled[0])] == [
        "forward_kernel", "backward_kernel",
    ]  # fmt: skip


ONES = {  # options of a single channel, band and frame
    "tap": {"shapes": [(1, 1)], "lengths": (1,)},
    "compress": {"students": [(1, 1)], "teachers": [(1, 1)], "lengths": (1,)},
    "correlation": {"rows": (1, 1)},
    "divergence": {"rows": (1, 1), "kind": "jsd"},
    "dots": {"shape": (1, 1)},
    "gram": {"shape": (1, 1), "axis": "frames", "shifted": True},
    "pointwise": {"shape": (1, 1), "kind": "heteroscedastic", "lengths": (1,)},
    "project": {"channels": (1, 1), "spatial": (1, 1), "lengths": (1,)},
    "pyramid": {"shape": (1, 1, 1), "lengths": (1,)},
    "spectral": {"bins": (1, 1), "lengths": (1,)},
}


@pytest.mark.parametrize("name", SPECS)
def test_sizes_of_one_compile(name):
    """Triton would make an int of 1 a constant."""
    (case,) = cases("one", (torch.float32,), batch=1, **ONES[name])
    kernels = compiled_triton.inspect_case(SPECS[name], case, SM_90)
    assert kernels and [kernel.problems for kernel in kernels] == [[]] * len(kernels)


def _means(dtype, layout):
    return next(x for x in SPECS["tap"].compiled if (x.name, x.dtype, x.layout) == ("means and lengths", dtype, layout))


def test_occupancy_is_llvms():
    """Without shared memory, of which LLVM doesn't know: Triton asks for it at launch."""
    launches = compiled_triton.launches(SPECS["tap"], _means(torch.float16, "contiguous"), GFX942)
    for launch, kernel in zip(launches, compiled_triton.inspect(launches, GFX942), strict=True):
        text = compiled_triton.build(launch, GFX942).asm["amdgcn"]
        warps = int(re.search(r"; Occupancy: (\d+)", text).group(1))
        assert occupancy(kernel.arch, 256, kernel.registers, 0) * 8 == warps, kernel


def test_a_spill_is_found():
    """A kernel that is given too few registers fails what all others are held to."""
    launches = compiled_triton.launches(SPECS["tap"], _means(torch.float64, "channels_last"), SM_90)
    (spilling,) = compiled_triton.inspect(launches[:1], SM_90, "means", maxnreg=24)
    assert spilling.stack > 0
    assert spilling.local_accesses > 0
    assert len(spilling.problems) == 2


def test_what_is_kept_notices_changes(tmp_path, monkeypatch):
    """Machine code that was read once is not read again, unless it, or what reads it, is another."""
    monkeypatch.setattr(compiled, "CACHE", tmp_path)
    made = []
    for key in ("code", "code", "other code"):
        assert compiled.kept("kernel", [key], lambda key=key: made.append(key) or key) == key
    assert made == ["code", "other code"]
    monkeypatch.setattr(compiled, "_reader", lambda: "another reader")
    compiled.kept("kernel", ["code"], lambda: made.append("again") or "code")
    assert made[-1] == "again"
