"""The Triton kernels, compiled for every target that we name, without a GPU.

What is compiled is what the ops launch: their launches are recorded for each Spec's `compiled` cases, and Triton's own
launcher makes a signature of each.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib import import_module

import triton
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget, Language
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from abckd_kernels import ops
from abckd_kernels.ops import triton_layers

from ..ops import SPECS
from ..running import Run
from ..spec import Case, Spec
from . import machine_code
from .compiled import JOBS, Kernel, dump, kept

TARGETS = [GPUTarget("cuda", arch, 32) for arch in (80, 86, 90, 100, 120)] + [GPUTarget("hip", "gfx942", 64)]
EVERYTHING = [target for target in TARGETS if target.arch in (90, "gfx942")]  # for which all cases are compiled


@cache
def _module(op: str):
    return import_module(f"{ops.__name__}.{op}.triton")


def modules() -> list:
    """triton.py of every op."""
    return [_module(op) for op in SPECS]


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
    found = Launches()
    precision = "ieee" if target.backend == "hip" else "tf32x3"
    replaced = {"launch": found, "WARP": target.warp_size, "PRECISION": precision}
    originals = [(op, name, getattr(op, name)) for op in modules() for name in replaced if hasattr(op, name)]
    for op, name, _ in originals:
        setattr(op, name, replaced[name])
    try:
        yield found
    finally:
        for op, name, original in originals:
            setattr(op, name, original)


def launches(spec: Spec, case: Case, target: GPUTarget = TARGETS[0]) -> Launches:
    """What an op's forward and backward launch for a case on a target."""
    run = Run(spec, spec.make(case, values="empty"), entry=_entry)
    with recorded(target) as found:
        run.forward()
        run.backward()
    return found


def _entry(name: str) -> Callable:
    op, _, direction = name.partition("_")
    return getattr(_module(op), direction)


def cases(target: GPUTarget) -> list[tuple[Spec, Case]]:
    """What is compiled for a target: everything for the EVERYTHING ones, for others a case of each kernel of an op."""
    found = []
    for spec in SPECS.values():
        left = set(spec.launches["triton"])
        for case in spec.compiled:
            kernels = {launch[0].__name__ for launch in launches(spec, case, target)}
            if target in EVERYTHING or left & kernels:
                found.append((spec, case))
                left -= kernels
    return found


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


def inspect(found: list[tuple], target: GPUTarget, variant: str = "-", **options) -> list[Kernel]:
    """What `build` makes of each launch, as the machine has it."""
    binaries = [build(launch, target, **options) for launch in found]
    with ThreadPoolExecutor(JOBS) as pool:  # disassembling takes longer than all else
        return list(pool.map(lambda pair: _kept(*pair, target, variant), zip(found, binaries, strict=True)))


def _kept(launch: tuple, binary, target: GPUTarget, variant: str) -> Kernel:
    code = binary.asm["amdgcn" if target.backend == "hip" else "cubin"]
    name = f"{launch[0].fn.__module__}.{launch[0].__name__}{variant}{target}{triton.__version__}{_tile(launch)}"
    return kept(name, [str(binary.metadata), code], lambda: _read(launch, binary, target, variant))


def _read(launch: tuple, binary, target: GPUTarget, variant: str) -> Kernel:
    function = launch[0].fn
    op = next((op for op in SPECS if _module(op).__name__ == function.__module__), function.__module__)
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


def inspect_case(spec: Spec, case: Case, target: GPUTarget) -> list[Kernel]:
    """The kernels that an op launches for a case on a target."""
    return inspect(launches(spec, case, target), target, str(case))


def _tile(launch: tuple) -> str:
    """Channels and positions of tap's tile; where channels lie together, it depends on their number."""
    constants = launch[2]
    return f", tile {constants['BLOCK_C']} x {constants['BLOCK_P']}" if "BLOCK_P" in constants else ""
