"""The Triton kernels, compiled for every target that we name, without a GPU.

What is compiled is what the ops launch: their launches are recorded at the shapes of a noise suppressor, and Triton's
own launcher makes a signature of each.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

import torch
import triton
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget, Language
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from abckd_kernels.ops import triton_layers
from abckd_kernels.ops.compress import triton as compress_kernels
from abckd_kernels.ops.correlation import triton as correlation_kernels
from abckd_kernels.ops.divergence import KINDS as DIVERGENCES
from abckd_kernels.ops.divergence import triton as divergence_kernels
from abckd_kernels.ops.dots import triton as dots_kernels
from abckd_kernels.ops.gram import triton as gram_kernels
from abckd_kernels.ops.pointwise import KINDS
from abckd_kernels.ops.pointwise import triton as pointwise_kernels
from abckd_kernels.ops.project import triton as project_kernels
from abckd_kernels.ops.pyramid import triton as pyramid_kernels
from abckd_kernels.ops.spectral import triton as spectral_kernels
from abckd_kernels.ops.tap import triton as tap_kernels

from . import machine_code
from .compiled import JOBS, Kernel, dump

TARGETS = [GPUTarget("cuda", arch, 32) for arch in (80, 86, 90, 100, 120)] + [GPUTarget("hip", "gfx942", 64)]
OPS = {
    tap_kernels: "tap",
    compress_kernels: "compress",
    correlation_kernels: "correlation",
    dots_kernels: "dots",
    divergence_kernels: "divergence",
    gram_kernels: "gram",
    pointwise_kernels: "pointwise",
    project_kernels: "project",
    pyramid_kernels: "pyramid",
    spectral_kernels: "spectral",
}


class Launches(list):
    """Stands in for `launch`: (kernel, positional arguments, constants, options) of each call."""

    def __call__(self, kernel, programs, like, *args, **constants):
        given = {"num_warps": "num_warps", "num_stages": "num_stages", "registers": "maxnreg"}
        options = {of: constants.pop(name) for name, of in given.items() if name in constants}
        options = {"num_warps": 4} | {name: value for name, value in options.items() if value is not None}
        self.append((kernel, args, constants, options))


@contextmanager
def recorded(target: GPUTarget = TARGETS[0]) -> Iterator[Launches]:
    """Launches of the ops in the block, as they would be on the target; nothing runs."""
    launches = Launches()
    precision = "ieee" if target.backend == "hip" else "tf32x3"
    replaced = {"launch": launches, "WARP": target.warp_size, "PRECISION": precision}
    originals = [(op, name, getattr(op, name)) for op in OPS for name in replaced if hasattr(op, name)]
    for op, name, _ in originals:
        setattr(op, name, replaced[name])
    try:
        yield launches
    finally:
        for op, name, original in originals:
            setattr(op, name, original)


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
    distances, *saved = compress_kernels.forward(
        students, teachers, None, mask, grid, per_frame, 0.1, lengths, 200, True
    )
    compress_kernels.backward(distances, None, *saved, [200, 64] * 3, lengths, 200, [True, False])


def compress_with_learned_scores(gradients: bool) -> None:
    students, teachers = _maps()
    scores = torch.empty(2, 3, 6)
    compress_kernels.forward(students, teachers, scores, None, [200, 64], False, 0.1, None, 200, gradients)


def spectral(dtype: torch.dtype, bands_last: bool = False, lengths: torch.Tensor | None = None) -> None:
    student, teacher = (torch.empty(2, 257, 200, 2, dtype=dtype) for _ in range(2))
    if bands_last:
        student, teacher = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (student, teacher))
    options = 0.3, 1e-12, lengths, 200
    spectral_kernels.forward(student, teacher, *options)
    spectral_kernels.backward(torch.empty(2), torch.empty(2), student, teacher, *options)


LOGITS = {"vocabulary": (64, 50257, 1), "short rows": (4096, 10, 1), "mask": (2, 64, 200 * 64)}


def divergence(dtype: torch.dtype, kind: int, shape: tuple[int, int, int]) -> None:
    student, teacher = (torch.empty(shape, dtype=dtype) for _ in "st")
    ignore = torch.zeros(shape[0] * shape[2], dtype=torch.bool) if kind else None
    values, saved = divergence_kernels.forward(student, teacher, ignore, kind, 0.5, 2.0, None, True)
    divergence_kernels.backward(values, student, teacher, saved, kind, 0.5, 2.0, None)


def pointwise(kind: str, dtype: torch.dtype, channels_last: bool = False, lengths: torch.Tensor | None = None) -> None:
    student, teacher = features(dtype, channels_last)[1:]
    third = teacher if KINDS[kind].third else None
    per_channel = torch.empty(64) if KINDS[kind].per_channel else None
    operands = student, teacher, third, per_channel, kind, KINDS[kind].parameter or 0.0, lengths, 200
    sums = pointwise_kernels.forward(*operands)
    pointwise_kernels.backward(sums, *operands)


def project(
    dtype: torch.dtype, channels_last: bool = False, channels: tuple[int, int] = (32, 64), attended: bool = False
) -> None:
    """One teacher with a bias, or with attention two of them and padding; every gradient."""
    student, teacher = (torch.empty(2, count, 200, 64, dtype=dtype) for count in channels)
    if channels_last:
        student, teacher = (x.to(memory_format=torch.channels_last) for x in (student, teacher))
    weight = torch.empty(*channels[::-1])
    bias, attention, lengths = None if attended else torch.empty(channels[1]), None, None
    if attended:
        attention, lengths = torch.empty(2, 2), torch.tensor([200, 77])
    operands = (student, weight, [teacher] * (1 + attended), bias, attention, lengths, 200)
    project_kernels.forward(*operands)
    project_kernels.backward(torch.empty(2), *operands, [True, True, not attended, attended])


def gram(dtype: torch.dtype, axis: str, channels_last: bool = False) -> None:
    x = features(dtype, channels_last)[1]
    for shifted in (False, True):
        gram_kernels.backward(gram_kernels.forward(x, axis, shifted), x, axis, shifted)


def pyramid(dtype: torch.dtype, channels_last: bool = False, lengths: torch.Tensor | None = None) -> None:
    _, student, teacher = features(dtype, channels_last)
    levels = [4, 2, 1]
    errors, cells = pyramid_kernels.forward(student, teacher, levels, lengths, 200)
    pyramid_kernels.backward(errors, student, teacher, cells, levels, lengths, 200)


def dots(dtype: torch.dtype) -> None:
    _, x, y = features(dtype)
    dots_kernels.forward(x, y)
    dots_kernels.backward(torch.empty(2, 64, 7, dtype=torch.float64), x, y, [True, True])


def correlation(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    student, teacher = (torch.empty(shape, dtype=dtype) for _ in "st")
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    by_class, by_row = torch.empty((3, shape[1]), dtype=wide), torch.empty((2, shape[0], 1, shape[2]), dtype=wide)
    for ignore in (None, torch.zeros(shape[0], 1, shape[2], dtype=torch.bool)):
        given = student, teacher, ignore, torch.tensor(4.0, dtype=torch.float64)
        correlation_kernels.forward(*given)
        grads = torch.ones((), dtype=wide)
        correlation_kernels.backward(grads, grads, *given, by_class, by_row, grads)


LAYOUTS = {"contiguous": False, "channels_last": True}
CASES: dict[str, Callable[[], None]] = {
    **{
        f"{str(dtype).removeprefix('torch.')}, {layout}{', means and lengths' * (run is tap_with_means_and_lengths)}":
        lambda run=run, dtype=dtype, last=last: run(dtype, last)
        for run in (tap, tap_with_means_and_lengths)
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
        for layout, last in LAYOUTS.items()
    },
    **{
        f"{str(dtype).removeprefix('torch.')}, spectrum{', lengths' * (lengths is not None)}":
        lambda dtype=dtype, lengths=lengths: spectral(dtype, lengths is not None, lengths)
        for lengths in (None, torch.tensor([200, 77]))
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    },
    **{
        f"{kind}, {str(dtype).removeprefix('torch.')}, {layout}":
        lambda kind=kind, dtype=dtype, last=last: pointwise(kind, dtype, last, torch.tensor([200, 77]))
        for kind in KINDS
        for dtype in (torch.float32, torch.float64, torch.bfloat16)
        for layout, last in LAYOUTS.items()
    },
    "per sample, on the grid": lambda: compress([200, 64], False),
    "per frame, on the grid": lambda: compress([200, 64], True),
    "per sample, pooled": lambda: compress([50, 24], False),
    "per frame, pooled": lambda: compress([50, 24], True),
    "learned scores, evaluation": lambda: compress_with_learned_scores(False),
    "learned scores, training": lambda: compress_with_learned_scores(True),
    **{
        f"{str(dtype).removeprefix('torch.')}, {DIVERGENCES[kind]}, {name}":
        lambda dtype=dtype, kind=kind, shape=shape: divergence(dtype, kind, shape)
        for kind, dtype in ((0, torch.float32), (0, torch.bfloat16), (1, torch.float16), (2, torch.float32),
                            (2, torch.float64))
        for name, shape in LOGITS.items()
    },
    **{
        f"{str(dtype).removeprefix('torch.')}, {layout}, one teacher":
        lambda dtype=dtype, last=last: project(dtype, last)
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
        for layout, last in LAYOUTS.items()
    },
    "64 channels, one teacher": lambda: project(torch.float32, channels=(64, 128)),
    "130 channels, one teacher": lambda: project(torch.float32, channels=(130, 130)),
    "128 channels, one teacher": lambda: project(torch.float32, channels=(128, 256)),
    "two teachers, lengths": lambda: project(torch.float32, attended=True),
    **{
        f"{str(dtype).removeprefix('torch.')}, correlation, {name}":
        lambda dtype=dtype, shape=shape: correlation(dtype, shape)
        for dtype in (torch.float32, torch.float64, torch.bfloat16)
        for name, shape in LOGITS.items()
    },
    **{
        f"{str(dtype).removeprefix('torch.')}, pyramid, {layout}":
        lambda dtype=dtype, last=last: pyramid(dtype, last, torch.tensor([200, 77]))
        for dtype in (torch.float32, torch.float64, torch.bfloat16)
        for layout, last in LAYOUTS.items()
    },
    "float32, of two features": lambda: dots(torch.float32),
    "bfloat16, of two features": lambda: dots(torch.bfloat16),
    "float32, samples": lambda: gram(torch.float32, "samples"),
    "float64, channels": lambda: gram(torch.float64, "channels"),
    "float32, frames": lambda: gram(torch.float32, "frames"),
    "bfloat16, frames, channels_last": lambda: gram(torch.bfloat16, "frames", True),
}  # fmt: skip


@cache
def _binder(kernel, target: GPUTarget) -> Callable:
    """Triton's own launcher's way from arguments to what it compiles for them."""
    return create_function_from_signature(kernel.signature, kernel.params, make_backend(target))


def _bound(launch: tuple, target: GPUTarget, **options) -> tuple[dict, list, dict]:
    kernel, args, constants, own_options = launch
    own_options = triton_layers.OPTIONS | own_options
    if target.backend != "cuda":
        own_options = {name: value for name, value in own_options.items() if name not in triton_layers.OPTIONS}
    return _binder(kernel, target)(*args, **constants, **own_options | options)


def key(launch: tuple, target: GPUTarget) -> tuple:
    """What Triton's launcher looks a compiled kernel up by."""
    _, specialisation, options = _bound(launch, target)
    return tuple(specialisation), str(options)


def source(launch: tuple, target: GPUTarget, **options) -> tuple[ASTSource, object]:
    """What Triton compiles for a launch, and its options: the compiler's `options` over those the library gives."""
    bound, specialisation, others = _bound(launch, target, **options)
    parsed, signature, constants, attributes = launch[0]._pack_args(
        make_backend(target), others, bound, specialisation, others
    )
    return ASTSource(launch[0], signature, constants, attributes), parsed


def build(launch: tuple, target: GPUTarget, **options):
    """Triton's compiled kernel."""
    kernel_source, parsed = source(launch, target, **options)
    return triton.compile(kernel_source, target=target, options=vars(parsed))


def intermediate(launch: tuple, target: GPUTarget):
    """The kernel in Triton's intermediate language, optimised, with functions inlined: the module and its context."""
    kernel_source, parsed = source(launch, target)
    backend, context = make_backend(target), ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    codegen = backend.get_codegen_implementation(parsed)
    module = kernel_source.make_ir(target, parsed, codegen, backend.get_module_map(), context)
    stages = {}
    backend.add_stages(stages, parsed, Language.TRITON)
    return stages["ttir"](module, {}), context


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
