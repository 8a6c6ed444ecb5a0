"""Theoretical occupancy: resident warps over the most that a multiprocessor holds, from what a kernel's blocks need.

    blocks = min(blocks, warps / warps of a block, register warps / warps of a block, shared memory / memory of a block)
    occupancy = blocks * warps of a block / warps

each quotient rounded down. A warp takes its registers from one of the four schedulers' files: register warps are
4 * floor(file / registers of a warp), the latter rounded up to the file's unit. NVIDIA's limits are those of the table
"Technical Specifications per Compute Capability" in the CUDA programming guide, the units those of cuda_occupancy.h in
the toolkit; gfx942's are LLVM's, with compute units, wavefronts and LDS for multiprocessors, warps and shared memory.
"""

from __future__ import annotations

from dataclasses import dataclass

KB = 1024
SCHEDULERS = 4  # per multiprocessor, and SIMDs per compute unit, on all that are named here


@dataclass(frozen=True)
class Limits:
    """Of one multiprocessor."""

    warps: int
    blocks: int
    shared: int
    reserved: int = KB  # shared memory that a block takes besides its own
    registers: int = 64 * KB // SCHEDULERS  # of one scheduler, 32 bits each
    register_unit: int = 256  # what a warp's registers are rounded up to
    shared_unit: int = 128
    warp_size: int = 32


LIMITS = {
    "sm_80": Limits(64, 32, 164 * KB),
    "sm_86": Limits(48, 16, 100 * KB),
    "sm_90": Limits(64, 32, 228 * KB),
    "sm_100": Limits(64, 32, 228 * KB),
    "sm_120": Limits(48, 24, 100 * KB),
    "gfx942": Limits(
        32, 32, 64 * KB, reserved=0, registers=512 * 64, register_unit=8 * 64, shared_unit=512, warp_size=64
    ),
}


def resident_blocks(arch: str, threads: int, registers: int, shared: int) -> int:
    """Blocks of so many threads, registers per thread and bytes of shared memory that one multiprocessor holds."""
    limits = LIMITS[arch]
    warps = -(-threads // limits.warp_size)
    taken_by_warp = _rounded(max(registers, 1) * limits.warp_size, limits.register_unit)
    register_warps = limits.registers // taken_by_warp * SCHEDULERS
    if register_warps < _rounded(warps, SCHEDULERS):  # so the hardware checks whether a block fits at all
        return 0
    taken = _rounded(shared + limits.reserved, limits.shared_unit)
    return min(
        limits.blocks,
        limits.warps // warps,
        register_warps // warps,
        limits.shared // taken if taken else limits.blocks,
    )


def occupancy(arch: str, threads: int, registers: int, shared: int) -> float:
    warps = -(-threads // LIMITS[arch].warp_size)
    return resident_blocks(arch, threads, registers, shared) * warps / LIMITS[arch].warps


def _rounded(value: int, unit: int) -> int:
    return -(-value // unit) * unit
