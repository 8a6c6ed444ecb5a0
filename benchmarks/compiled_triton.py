"""The Triton kernels, compiled for every target that we name, without a GPU.

What is compiled is what the ops launch: their launches are recorded at the shapes of a noise suppressor, and each one
becomes a signature as Triton's own launcher would specialise it.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from abckd_kernels.ops import triton_layers
from abckd_kernels.ops.compress import triton as compress_kernels
from abckd_kernels.ops.divergence import KINDS
from abckd_kernels.ops.divergence import triton as divergence_kernels
from abckd_kernels.ops.tap import triton as tap_kernels

from . import machine_code
from .compiled import JOBS, Kernel, dump

TARGETS = [GPUTarget("cuda", arch, 32) for arch in (80, 86, 90, 100, 120)] + [GPUTarget("hip", "gfx942", 64)]
POINTERS = {torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16", torch.float16: "*fp16",
            torch.int64: "*i64", torch.int8: "*i8", torch.bool: "*i1"}  # fmt: skip
OPS = {tap_kernels: "tap", compress_kernels: "compress", divergence_kernels: "divergence"}


class Launches(list):
    """Stands in for `launch`: (kernel, positional arguments, constants, options) of each call."""

    def __call__(self, kernel, programs, like, *args, **constants):
        options = {"num_warps": constants.pop("num_warps", 4)}
        self.append((kernel, args, constants, options))


@contextmanager
def recorded(target: GPUTarget = TARGETS[0]) -> Iterator[Launches]:
    """Launches of the ops in the block, as they would be on the target; nothing runs."""
    launches, warp = Launches(), tap_kernels.WARP
    originals = {module: module.launch for module in OPS}
    tap_kernels.WARP = divergence_kernels.WARP = target.warp_size
    for module in OPS:
        module.launch = launches
    try:
        yield launches
    finally:
        tap_kernels.WARP = divergence_kernels.WARP = warp
        for module, launch in originals.items():
            module.launch = launch


def features(dtype: torch.dtype, channels_last: bool = False) -> list[torch.Tensor]:
    """One layer of a student, two of a teacher."""
    layers = [torch.empty(2, channels, 200, 64, dtype=dtype) for channels in (32, 64, 64)]
    return [x.to(memory_format=torch.channels_last) for x in layers] if channels_last else layers


def tap(dtype: torch.dtype, channels_last: bool = False) -> None:
    xs = features(dtype, channels_last)
    maps, _ = tap_kernels.forward(xs, 2, False, None, 200)
    tap_kernels.backward(xs, xs, maps, [None] * 3, 2, None, 200)


def tap_with_means_and_lengths(dtype: torch.dtype, channels_last: bool = False) -> None:
    xs, lengths = features(dtype, channels_last), torch.tensor([200, 77])
    maps, means = tap_kernels.forward(xs, 1, True, lengths, 200)
    tap_kernels.backward([None] * 3, xs, maps, means, 1, lengths, 200)


def _maps() -> Iterator[list[torch.Tensor]]:
    return ([torch.empty(2, 200, 64) for _ in range(count)] for count in (3, 6))


def compress(grid: list[int], per_frame: bool) -> None:
    students, teachers = _maps()
    lengths = torch.tensor([200, 77])
    mask = torch.ones(3, 6, dtype=torch.bool)
    compress_kernels.forward(students, teachers, None, mask, grid, per_frame, 0.1, lengths, 200, True)
    compress_kernels.backward(torch.empty(2, 3), torch.empty(2, 3, *grid), [200, 64] * 3, lengths, 200)


def compress_with_learned_scores(gradients: bool) -> None:
    students, teachers = _maps()
    scores = torch.empty(2, 3, 6)
    compress_kernels.forward(students, teachers, scores, None, [200, 64], False, 0.1, None, 200, gradients)


LOGITS = {"vocabulary": (64, 50257, 1), "short rows": (4096, 10, 1), "mask": (2, 64, 200 * 64)}


def divergence(dtype: torch.dtype, kind: int, shape: tuple[int, int, int]) -> None:
    student, teacher = (torch.empty(shape, dtype=dtype) for _ in "st")
    ignore = torch.zeros(shape[0] * shape[2], dtype=torch.bool) if kind else None
    values, saved = divergence_kernels.forward(student, teacher, ignore, kind, 0.5, 2.0, True)
    divergence_kernels.backward(values, student, teacher, saved, kind, 0.5, 2.0)


LAYOUTS = {"contiguous": False, "channels_last": True}
CASES: dict[str, Callable[[], None]] = {
    **{
        f"{str(dtype).removeprefix('torch.')}, {layout}{', means and lengths' * (run is tap_with_means_and_lengths)}":
        lambda run=run, dtype=dtype, last=last: run(dtype, last)
        for run in (tap, tap_with_means_and_lengths)
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
        for layout, last in LAYOUTS.items()
    },
    "per sample, on the grid": lambda: compress([200, 64], False),
    "per frame, on the grid": lambda: compress([200, 64], True),
    "per sample, pooled": lambda: compress([50, 24], False),
    "per frame, pooled": lambda: compress([50, 24], True),
    "learned scores, evaluation": lambda: compress_with_learned_scores(False),
    "learned scores, training": lambda: compress_with_learned_scores(True),
    **{
        f"{str(dtype).removeprefix('torch.')}, {KINDS[kind]}, {name}":
        lambda dtype=dtype, kind=kind, shape=shape: divergence(dtype, kind, shape)
        for kind, dtype in ((0, torch.float32), (0, torch.bfloat16), (1, torch.float16), (2, torch.float32),
                            (2, torch.float64))
        for name, shape in LOGITS.items()
    },
}  # fmt: skip


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


def build(launch: tuple, target: GPUTarget, **options):
    """Triton's compiled kernel. `options` are the compiler's, over those that the library gives."""
    kernel, args, constants, own_options = launch
    signature, fixed, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], fixed[(index,)] = "constexpr", constants[name]
        else:
            signature[name], more, known = specialise(args[index], (index,))
            fixed.update(more)
            attributes.update(known)
    of_target = triton_layers.OPTIONS if target.backend == "cuda" else {}
    return triton.compile(
        ASTSource(kernel, signature, fixed, attributes), target=target, options=own_options | of_target | options
    )


def inspect(launches: list[tuple], target: GPUTarget, variant: str = "-", **options) -> list[Kernel]:
    """What `build` makes of each launch, as the machine has it."""
    binaries = [build(launch, target, **options) for launch in launches]
    with ThreadPoolExecutor(JOBS) as pool:  # disassembling takes longer than all else
        return list(pool.map(lambda pair: _read(*pair, target, variant), zip(launches, binaries, strict=True)))


def _read(launch: tuple, binary, target: GPUTarget, variant: str) -> Kernel:
    function = launch[0].fn
    op = next((op for module, op in OPS.items() if module.__name__ == function.__module__), function.__module__)
    known = {
        "backend": "triton",
        "name": f"{op}.{function.__name__}",
        "variant": variant + _tile(launch),
        "threads": binary.metadata.num_warps * target.warp_size,
        "shared": binary.metadata.shared,
    }
    if target.backend == "hip":
        return _of_amd(binary.asm["amdgcn"], arch=target.arch, **known)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        (code,) = machine_code.read_sass(dump(file.name, "sass")).values()
        usage = dict(re.findall(r"(\w+):(\d+)", dump(file.name, "resource-usage")))
    return Kernel(
        arch=f"sm_{target.arch}",
        registers=int(usage["REG"]),
        stack=int(usage["STACK"]) + int(usage["LOCAL"]),
        code=code,
        **known,
    )


def _of_amd(text: str, **known) -> Kernel:
    amount = {name: int(value) for name, value in re.findall(r"^[\s-]+\.(\w+):\s+(\d+)$", text, re.MULTILINE)}
    # Of vectors and of matrix instructions: they share one file.
    registers = int(re.search(r"; NumVGPRsForWavesPerEU: (\d+)", text).group(1))
    return Kernel(
        registers=registers,
        # Scalar registers spill into lanes of vector registers, which takes no memory.
        stack=amount["private_segment_fixed_size"] + 4 * amount["vgpr_spill_count"],
        code=machine_code.read_amdgcn(text),
        **known,
    )


def inspect_case(name: str, target: GPUTarget) -> list[Kernel]:
    """The kernels that a case launches on a target."""
    with recorded(target) as launches:
        CASES[name]()
    return inspect(launches, target, name)


def _tile(launch: tuple) -> str:
    """Channels and positions of tap's tile; where channels lie together, it depends on their number."""
    constants = launch[2]
    return f", tile {constants['BLOCK_C']} x {constants['BLOCK_P']}" if "BLOCK_P" in constants else ""
