"""`python -m abckd_verify.resources`: what every GPU kernel takes from a multiprocessor, read from its machine code.

The CUDA kernels are compiled by nvcc and the Triton kernels by Triton, for every architecture that we name and without
a GPU. --write puts the worst of each kernel into docs/resources.md, and all rows into build/resources.md.

Gates (--check): no spill and no local memory anywhere; tap's loops over features load by 16 bytes, and no thread waits
for another in them (but for Triton's tap with means).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .machines import compiled_cuda
from .machines.compiled import Kernel, ToolMissing, nvidia_tool
from .resources_page import ALL, PAGE, everything, page, table, titled, worst


def problems(kernel: Kernel) -> list[str]:
    """A sentence for each gate that the kernel fails."""
    found = list(kernel.problems)
    if not kernel.name.startswith("tap"):
        return found
    if not _waits_for_triton(kernel):
        found += kernel.loop_problems
    if "mean_kernel" in kernel.name:  # reads sums of tiles: 1 / tile of the bytes
        return found
    if kernel.instructions_per_load is None:
        found.append(f"{kernel}: its inner loop has no load of 16 bytes")
    elif kernel.backend == "cuda" and kernel.loop_share_of_16 < 1:
        found.append(f"{kernel}: its inner loop loads {dict(kernel.load_widths)} (bytes: loads)")
    return found


def _waits_for_triton(kernel: Kernel) -> bool:
    """Triton moves the channel sums of a tile to the threads that store them through shared memory."""
    return kernel.backend == "triton" and kernel.name == "tap.forward_kernel" and "means" in kernel.variant


def cuda_kernels() -> list[Kernel]:
    """All instances on all architectures. Raises ToolMissing, and RuntimeError if nvcc fails."""
    if missing := compiled_cuda.missing():
        raise ToolMissing(missing)
    nvidia_tool("cuobjdump")
    return [kernel for future in compiled_cuda.build_all().values() for kernel in future.result()]


def triton_kernels() -> list[Kernel]:
    """All cases for two targets, a case per kernel for the others. Raises ToolMissing."""
    try:
        from .machines import compiled_triton
    except ImportError as error:
        raise ToolMissing(f"triton can't be imported ({error})") from error
    nvidia_tool("cuobjdump")
    return [
        kernel
        for target in compiled_triton.TARGETS
        for spec, case in compiled_triton.cases(target)
        for kernel in compiled_triton.inspect_case(spec, case, target)
    ]


SOURCES = {"cuda": cuda_kernels, "triton": triton_kernels}


def as_dict(kernel: Kernel) -> dict:
    loop = kernel.inner_loop
    return {
        "backend": kernel.backend,
        "kernel": kernel.name,
        "variant": kernel.variant,
        "arch": kernel.arch,
        "threads": kernel.threads,
        "registers": kernel.registers,
        "spills": kernel.local_accesses,
        "stack": kernel.stack,
        "shared": kernel.shared,
        "occupancy": kernel.occupancy,
        "loads": dict(kernel.load_widths),
        "share_of_16": kernel.share_of_16,
        "loop_share_of_16": kernel.loop_share_of_16,
        "loop_instructions": loop.instructions if loop else None,
        "loop_loads_of_16": loop.loads_of_16 if loop else None,
        "instructions_per_load": kernel.instructions_per_load,
        "barriers": kernel.loop_barriers,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0].replace("`", ""))
    parser.add_argument("--backend", choices=SOURCES, action="append", help="which (repeatable; default: all)")
    parser.add_argument("--write", action="store_true", help=f"write these backends into docs/{PAGE.name}")
    parser.add_argument("--json", help="also write a list of all kernels to this file")
    parser.add_argument("--check", action="store_true", help="exit with an error if a gate fails or can't be tried")
    options = parser.parse_args()

    kernels, skipped = {}, []
    for backend in options.backend or SOURCES:
        try:
            kernels[backend] = SOURCES[backend]()
        except ToolMissing as error:
            skipped.append(f"{backend}: not inspected, {error}")
    if options.write:
        PAGE.parent.mkdir(exist_ok=True)
        ALL.parent.mkdir(exist_ok=True)
        ALL.write_text(everything(kernels))
        PAGE.write_text(page(kernels, PAGE.read_text() if PAGE.exists() else ""))
    for title, found in titled(kernels):
        print(f"{title}, worst of each kernel (of {len(found)} instances)\n\n{worst(found)}\n")
        if not options.write:
            print(table(found) + "\n")
    if options.json:
        rows = [as_dict(kernel) for found in kernels.values() for kernel in found]
        Path(options.json).write_text(json.dumps(rows, indent=1))
    failed = [sentence for found in kernels.values() for kernel in found for sentence in problems(kernel)]
    print("\n".join(failed or ["every gate holds"]))
    for sentence in skipped:
        print(sentence)
    if options.check and (failed or skipped):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
