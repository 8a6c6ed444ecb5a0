"""The gates of abckd_verify.resources, for each CUDA kernel and architecture, and proof that they bite.

Triton's kernels are held to the same ones in test_compile_ahead.py.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
from pathlib import Path

import pytest

from abckd_verify import resources, resources_page
from abckd_verify.machines import compiled_cuda, machine_code
from abckd_verify.machines.compiled import ToolMissing, nvidia_tool
from abckd_verify.machines.occupancy import KB, LIMITS, resident_blocks

PLANTED = Path(__file__).parent / "planted_resources.cu"


def why_not() -> str | None:
    try:
        nvidia_tool("cuobjdump")
        compiled_cuda.find_nvcc()
    except ToolMissing as error:
        return str(error)
    return None


NO_COMPILER = why_not()
needs_nvcc = pytest.mark.skipif(NO_COMPILER is not None, reason=str(NO_COMPILER))


@pytest.fixture(scope="module")
def builds():
    return compiled_cuda.build_all()


@needs_nvcc
@pytest.mark.parametrize("arch", compiled_cuda.ARCHITECTURES)
@pytest.mark.parametrize("source", [path.name for path in compiled_cuda.sources()])
def test_cuda_kernels(builds, source, arch):
    kernels = builds[source, arch].result()
    assert kernels
    assert [sentence for kernel in kernels for sentence in resources.problems(kernel)] == []


@needs_nvcc
def test_the_page_is_as_the_kernels_are(builds):
    text = resources_page.PAGE.read_text()
    if f"by {resources_page.compiler('cuda')}," not in text:
        pytest.skip("the page was written with another nvcc")
    kernels = [kernel for future in builds.values() for kernel in future.result()]
    missing = [line for line in resources_page.worst(kernels).splitlines() if line not in text]
    assert not missing, "run python -m abckd_verify.resources --backend cuda --write"


@needs_nvcc
def test_a_part_of_the_page_can_be_written(planted):
    kernels = list(planted.values())
    whole = resources_page.page({"cuda": kernels}, "# Title\n\n## triton, NVIDIA\n\nkept\n\n## cuda, NVIDIA\n\nstale\n")
    titles = [line for line in whole.splitlines() if line.startswith("## ")]
    assert titles == ["## cuda, NVIDIA", "## triton, NVIDIA", "## Occupancy"]
    assert "\n\nkept\n\n" in whole
    assert "stale" not in whole
    assert resources_page.page({"cuda": kernels}, whole) == whole
    assert len(whole.splitlines()) < 100
    rows = resources_page.everything({"cuda": kernels})
    assert all(line in rows for line in resources_page.table(kernels).splitlines())


@pytest.fixture(scope="module", params=["sm_80", "sm_100"])
def planted(request):
    return {kernel.name: kernel for kernel in compiled_cuda.build(PLANTED, request.param)}


@needs_nvcc
@pytest.mark.parametrize(
    "name, sentence",
    {
        "tap_spilling_kernel": "loads and stores of local memory",
        "tap_local_array_kernel": "bytes of local memory per thread",
        "tap_waiting_kernel": "barriers in a loop",
        "tap_waiting_outside_kernel": "barriers in a loop",
        "tap_narrow_kernel": "no load of 16 bytes",
        "tap_mixed_kernel": "its inner loop loads",
    }.items(),
)
def test_planted_faults_are_found(planted, name, sentence):
    assert any(sentence in problem for problem in resources.problems(planted[name]))


@needs_nvcc
def test_a_right_kernel_passes_and_its_numbers_are_right(planted):
    kernel = planted["tap_right_kernel"]
    assert resources.problems(kernel) == []
    assert (kernel.threads, kernel.shared, kernel.stack) == (128, 0, 0)
    assert kernel.share_of_16 == kernel.loop_share_of_16 == 1
    assert kernel.inner_loop.loads == (16,) * 4
    assert 5 <= kernel.instructions_per_load <= 12  # the load, four sums and an address, and a share of the loop's own
    assert planted["tap_waiting_kernel"].shared == 128 * 16
    assert planted["tap_spilling_kernel"].threads == 1024
    assert planted["tap_spilling_kernel"].registers <= 32


SASS = """
		Function : first
	.headerflags	@"EF_CUDA_SM80"
        /*0000*/                   MOV R1, c[0x0][0x28] ;                  /* 0x00000a0000017a02 */
                                                                           /* 0x000fc40000000f00 */
        /*0010*/               @P0 BRA 0x90 ;                              /* 0x0 */
        /*0020*/                   LDG.E.LTC128B.128.CONSTANT R4, [R2.64] ; /* 0x0 */
        /*0030*/                   NOP ;                                   /* 0x0 */
        /*0040*/                   LDG.E.64 R4, [R2.64] ;                  /* 0x0 */
        /*0050*/              @!P1 BRA P2, 0x40 ;                          /* 0x0 */
        /*0060*/                   BRA.DIV UR4, 0xd0 ;                     /* 0x0 */
        /*0070*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;           /* 0x0 */
        /*0080*/                   BRA.U UP0, 0x20 ;                       /* 0x0 */
        /*0090*/                   LDG.E.U16 R4, [R2.64] ;                 /* 0x0 */
        /*00a0*/                   STL [R1], R4 ;                          /* 0x0 */
        /*00b0*/                   EXIT ;                                  /* 0x0 */
        /*00c0*/                   BRA 0xc0;                               /* 0x0 */
        /*00d0*/                   WARPSYNC.COLLECTIVE R1, 0xe0 ;          /* 0x0 */
        /*00e0*/                   BRA 0x70 ;                              /* 0x0 */
		Function : second
        /*0000*/                   LDG.E.ENL2.256 R4, R8, [R2.64] ;        /* 0x0 */
        /*0010*/               @P0 BRA 0x0 ;                               /* 0x0 */
        /*0020*/                   EXIT ;                                  /* 0x0 */
"""


def test_sass_is_read():
    functions = machine_code.read_sass(SASS)
    assert list(functions) == ["first", "second"]
    first = functions["first"]
    assert [one.loads for one in first if one.loads] == [16, 8, 2]
    assert sum(one.local for one in first) == 1
    outer, inner = sorted(machine_code.loops(first), key=lambda loop: -len(loop.body))
    # The block for diverged warps doesn't count, nor does NOP.
    assert (sorted(outer.body), outer.instructions, outer.loads, outer.barriers) == (
        [2, 3, 4, 5, 6, 7, 8],
        6,
        (16, 8),
        1,
    )
    assert (sorted(inner.body), inner.loads, inner.barriers) == ([4, 5], (8,), 0)
    assert machine_code.inner_loop(first) == inner
    assert machine_code.inner_loop(functions["second"]).loads_of_16 == 2


AMDGCN = """
kernel:                                 ; @kernel
	s_branch .LBB0_0
	.p2align	8
.LBB0_0:
	s_cbranch_vccz .LBB0_4
.LBB0_1:                                ; =>This Inner Loop Header: Depth=1
	s_cbranch_execz .LBB0_3
; %bb.2:
	.loc	1 94 29 is_stmt 0               ; triton.py:94:29
	global_load_dwordx4 v[2:5], v[2:3], off
	global_load_ushort v6, v[2:3], off
.LBB0_3:
	s_nop 0
	s_barrier
	scratch_store_dword off, v1, s0
	s_cbranch_vccnz .LBB0_1
.LBB0_4:
	s_endpgm
.Lfunc_end0:
	s_barrier
"""


def test_amd_assembly_is_read():
    code = machine_code.read_amdgcn(AMDGCN)
    loop = machine_code.inner_loop(code)
    assert (loop.instructions, loop.loads, loop.barriers) == (6, (16, 2), 1)
    assert sum(one.local for one in code) == 1
    assert not code[-1].falls_through


OCCUPANCY_PROGRAM = """
#include <cuda_occupancy.h>
#include <climits>
#include <cstdio>
int main() {
  int major, minor, warps, shared_per_multiprocessor, threads, registers, shared;
  while (scanf("%d %d %d %d %d %d %d", &major, &minor, &warps, &shared_per_multiprocessor, &threads, &registers, &shared) == 7) {
    cudaOccDeviceProp device;
    device.computeMajor = major;
    device.computeMinor = minor;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = warps * 32;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.sharedMemPerBlock = 49152;
    device.sharedMemPerMultiprocessor = shared_per_multiprocessor;
    device.sharedMemPerBlockOptin = shared_per_multiprocessor - 1024;
    device.reservedSharedMemPerBlock = 1024;
    device.numSms = 1;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = INT_MAX;
    kernel.numRegs = registers;
    kernel.sharedSizeBytes = shared;
    kernel.maxDynamicSharedSizeBytes = 49152;
    cudaOccDeviceState state;
    cudaOccResult result;
    const int error = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, 0);
    printf("%d\\n", error ? -error : result.activeBlocksPerMultiprocessor);
  }
}
"""  # noqa: E501


def test_occupancy_is_nvidias(tmp_path):
    """The formula and the limits against the calculator that NVIDIA ships as a header."""
    triton = pytest.importorskip("triton")
    include = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    compiler = shutil.which("c++")
    if compiler is None or not (include / "cuda_occupancy.h").exists():
        pytest.skip("needs a C++ compiler and cuda_occupancy.h")
    source, program = tmp_path / "occupancy.cpp", tmp_path / "occupancy"
    source.write_text(OCCUPANCY_PROGRAM)
    subprocess.run([compiler, "-std=c++17", "-w", f"-I{include}", source, "-o", program], check=True)
    cases, lines = [], []
    shapes = itertools.product(
        (32, 64, 96, 128, 256, 1024), (16, 32, 40, 64, 65, 96, 128, 255), (0, 100, 5120, 40 * KB)
    )
    for arch, shape in itertools.product(compiled_cuda.ARCHITECTURES, list(shapes)):
        capability, limits = arch.removeprefix("sm_"), LIMITS[arch]
        cases.append((arch, *shape))
        lines.append(" ".join(map(str, (capability[:-1], capability[-1], limits.warps, limits.shared, *shape))))
    result = subprocess.run([program], input="\n".join(lines), capture_output=True, text=True, check=True)
    expected = [int(number) for number in result.stdout.split()]
    assert len(expected) == len(cases)
    wrong = [(case, number) for case, number in zip(cases, expected, strict=True) if resident_blocks(*case) != number]
    assert not wrong
