"""The tables of abckd_verify.resources, and the page that holds them, docs/resources.md."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

from . import ROOT, markdown
from .machines import compiled_cuda, occupancy
from .machines.compiled import Kernel

PAGE, ALL = ROOT / "docs" / "resources.md", ROOT / "build" / "resources.md"
TITLES = ("cuda, NVIDIA", "triton, NVIDIA", "triton, AMD", "Occupancy")
HEAD = """# What the GPU kernels take

Written by `python -m abckd_verify.resources --write`, from machine code; nothing ran, and no GPU was there. The
rows of all instances go to build/resources.md.
"""
COLUMNS: dict[str, Callable[[Kernel], str]] = {
    "threads": lambda kernel: str(kernel.threads),
    "registers": lambda kernel: str(kernel.registers),
    "spills": lambda kernel: str(kernel.local_accesses),
    "stack": lambda kernel: str(kernel.stack),
    "shared": lambda kernel: str(kernel.shared),
    "occupancy": lambda kernel: f"{kernel.occupancy:.0%}",
    "by 16 bytes": lambda kernel: _share(kernel.share_of_16),
    "in the loop": lambda kernel: _share(kernel.loop_share_of_16),
    "instructions / load": lambda kernel: _number(kernel.instructions_per_load),
    "barriers": lambda kernel: str(kernel.loop_barriers) if kernel.inner_loop else "-",
}
MEANING = """Where a cell holds one value, all architectures agree; else values stand in the order of the architectures.

| column | meaning |
|---|---|
| threads | of a block |
| registers | of a thread; for gfx942 its vector registers |
| spills | loads and stores of local memory in the code: what spilled registers and arrays in local memory become |
| stack | bytes of local memory of a thread |
| shared | bytes of shared memory of a block; what a CUDA kernel asks for at launch (compress: up to 48 KB) isn't in its code and left out |
| occupancy | theoretical: resident warps over those that a multiprocessor can hold, from threads, registers and this shared memory |
| by 16 bytes | of the instructions that load global memory, those that load 16 bytes; kernels hold a path for rows that are not aligned as well |
| in the loop | the same in the inner loop: of the loops that load global memory and hold no other such loop, the one that loads most by 16 bytes |
| instructions / load | instructions of the inner loop, per load of 16 bytes in it; all of its code counts, also what a full tile skips |
| barriers | in loops that load global memory, at any depth; tap's have none, but for Triton's forward kernel with means, where Triton moves the channel sums of a tile to the threads that store them |
"""  # noqa: E501 - Markdown


def page(kernels: dict[str, list[Kernel]], written: str = "") -> str:
    """docs/resources.md with these backends; of others, what the page held when it was last written."""
    sections = {part.partition("\n")[0]: part.rstrip() for part in written.split("\n## ")[1:]}
    sections |= {title: _section(title, found) for title, found in titled(kernels)}
    sections["Occupancy"] = _occupancy_section()
    head = f"{HEAD}\n{MEANING}".rstrip()
    return "\n\n## ".join([head, *(sections[title] for title in TITLES if title in sections)]) + "\n"


def everything(kernels: dict[str, list[Kernel]]) -> str:
    """A row per kernel and variant of these backends."""
    return f"{MEANING}\n" + "\n\n".join(f"## {title}\n\n{table(found)}" for title, found in titled(kernels)) + "\n"


def _section(title: str, kernels: list[Kernel]) -> str:
    architectures = " / ".join(dict.fromkeys(kernel.arch for kernel in kernels))
    made = f"Compiled on {platform.machine()} by {compiler(kernels[0].backend)}, for {architectures}."
    return "\n\n".join(
        [
            title,
            f"{made} The worst of each kernel, of {len(kernels)} instances:",
            worst(kernels),
        ]
    )


def compiler(backend: str) -> str:
    """What the numbers belong to: they change with it."""
    if backend == "cuda":
        return f"nvcc {compiled_cuda.nvcc_version()}"
    import triton

    return f"triton {triton.__version__}"


def table(kernels: Iterable[Kernel]) -> str:
    """A row per kernel and variant, in Markdown."""
    rows = [[name, variant, *row(group)] for (name, variant), group in _grouped(kernels)]
    return markdown.table(["kernel", "variant", *COLUMNS], rows)


def row(kernels: list[Kernel]) -> list[str]:
    """The cells of one kernel and variant."""
    return [_joined([show(kernel) for kernel in kernels]) for show in COLUMNS.values()]


def worst(kernels: Iterable[Kernel]) -> str:
    """A row per kernel: the worst of all its variants and architectures, in Markdown."""
    rows = []
    by_name = sorted(kernels, key=lambda kernel: kernel.name)
    for name, group in groupby(by_name, key=lambda kernel: kernel.name):
        group = list(group)
        cells = [
            name,
            _extreme(group, max, lambda kernel: kernel.registers, str),
            str(max(kernel.local_accesses for kernel in group)),
            str(max(kernel.stack for kernel in group)),
            _extreme(group, min, lambda kernel: kernel.occupancy, lambda value: f"{value:.0%}"),
            _extreme(group, max, lambda kernel: kernel.instructions_per_load or 0, lambda most: _number(most or None)),
            _extreme(group, max, lambda kernel: kernel.loop_barriers, str),
        ]
        rows.append(cells)
    titles = ["kernel", "registers", "spills", "stack", "occupancy", "instructions / load", "barriers"]
    return markdown.table(titles, rows)


def titled(kernels: dict[str, list[Kernel]]) -> Iterator[tuple[str, list[Kernel]]]:
    """Kernels of one backend and one kind of GPU."""
    for backend, found in kernels.items():
        for vendor, prefix in (("NVIDIA", "sm_"), ("AMD", "gfx")):
            if group := [kernel for kernel in found if kernel.arch.startswith(prefix)]:
                yield f"{backend}, {vendor}", group


def _occupancy_section() -> str:
    titles = ["architecture", "warps", "blocks", "shared memory", "of it taken per block", "registers per scheduler"]
    rows = [
        [
            arch,
            f"{limit.warps} x {limit.warp_size}",
            *map(str, (limit.blocks, limit.shared, limit.reserved, limit.registers)),
        ]
        for arch, limit in occupancy.LIMITS.items()
    ]
    formula = occupancy.__doc__.partition("\n\n")[2].strip()
    return f"""Occupancy

{formula}

{markdown.table(titles, rows)}"""


def _grouped(kernels: Iterable[Kernel]) -> list[tuple[tuple[str, str], list[Kernel]]]:
    """By name and variant, one kernel per architecture; a variant that launches a kernel twice gives two groups."""
    groups: dict[tuple, list[Kernel]] = {}
    seen: dict[tuple, int] = {}
    for kernel in kernels:
        key = kernel.name, kernel.variant
        number = seen[(*key, kernel.arch)] = seen.get((*key, kernel.arch), 0) + 1
        groups.setdefault((*key, number), []).append(kernel)
    return [(key[:2], groups[key]) for key in sorted(groups)]


def _joined(cells: list[str]) -> str:
    return cells[0] if len(set(cells)) == 1 else " / ".join(cells)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _extreme(kernels: list[Kernel], choose: Callable, of: Callable, show: Callable) -> str:
    kernel = choose(kernels, key=of)
    text = show(of(kernel))
    return text if text in ("0", "-") else f"{text} ({kernel.variant}, {kernel.arch})"
