"""No Triton kernel is compiled again and again as batches change, and none computes an address in 32 bits.

Both are asked of what the ops launch (benchmarks/compiled_triton.py), without a GPU: the first of the keys under which
Triton's launcher keeps compiled kernels, the second of Triton's intermediate language.
"""

from __future__ import annotations

import itertools
from collections import defaultdict

import pytest
import torch

pytest.importorskip("triton")

from abckd_kernels import backends  # noqa: E402

if backends.TRITON_INTERPRET:
    pytest.skip("the interpreter replaces what would be compiled", allow_module_level=True)

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from abckd_kernels.ops import triton_layers  # noqa: E402
from abckd_kernels.ops.compress import triton as compress_kernels  # noqa: E402
from abckd_kernels.ops.correlation import triton as correlation_kernels  # noqa: E402
from abckd_kernels.ops.divergence import KINDS as DIVERGENCES  # noqa: E402
from abckd_kernels.ops.divergence import triton as divergence_kernels  # noqa: E402
from abckd_kernels.ops.dots import triton as dots_kernels  # noqa: E402
from abckd_kernels.ops.gram import AXES as GRAM_AXES  # noqa: E402
from abckd_kernels.ops.gram import triton as gram_kernels  # noqa: E402
from abckd_kernels.ops.pointwise import triton as pointwise_kernels  # noqa: E402
from abckd_kernels.ops.project import triton as project_kernels  # noqa: E402
from abckd_kernels.ops.pyramid import triton as pyramid_kernels  # noqa: E402
from abckd_kernels.ops.spectral import triton as spectral_kernels  # noqa: E402
from abckd_kernels.ops.tap import triton as tap_kernels  # noqa: E402
from benchmarks import compiled_triton  # noqa: E402

TARGET = compiled_triton.TARGETS[2]  # sm_90
MOST_KEYS = 3

# ------------------------------------------------------------------------------------------------ keys

# From 3 on: a map of one position has no layout, and a plane of one is a row, which other kernels serve.
LENGTHS = [3, 4, 5, 16, 33, 64, 65, 128, *range(150, 242)]
BATCHES = [1, 2, 3, 4, 8, 16, 17, 32, 33, 48, 64, 65, 100, 128]
# Every length, and batches in turn with them; then every batch, with a length that 16 divides and one that is odd.
SIZES = [*zip(LENGTHS, itertools.cycle(BATCHES)), *itertools.product((160, 201), BATCHES)]
BANDS = {"bands that 16 divides": 64, "odd bands": 5, "one band": 1}


def feature(batch, channels, frames, bands, dtype=torch.float32, channels_last=False):
    x = torch.empty(batch, channels, frames, bands, dtype=dtype, device="meta")
    return x.to(memory_format=torch.channels_last) if channels_last else x


def valid(batch, padded):
    return torch.empty(batch, dtype=torch.int64, device="meta") if padded else None


def tap(frames, batch, bands, padded, channels_last):
    """Nine layers; the deeper half has half the frames."""
    xs = [
        feature(batch, 16 * (1 + i), frames if i < 5 else (frames + 1) // 2, bands, torch.bfloat16, channels_last)
        for i in range(9)
    ]
    lengths = valid(batch, padded)
    maps, means = tap_kernels.forward(xs, 2, True, lengths, frames)
    tap_kernels.backward(xs, xs, maps, means, 2, lengths, frames)


def compress(frames, batch, bands, padded, pooled):
    maps = [torch.empty(batch, frames // (1 + i % 2), bands, device="meta") for i in range(4 if pooled else 1)]
    lengths, grid = valid(batch, padded), [frames, bands]
    _, *saved = compress_kernels.forward(maps, maps, None, None, grid, False, 1.0, lengths, frames, True)
    of_maps = [size for x in maps for size in x.shape[1:]]
    compress_kernels.backward(torch.empty(batch, len(maps), device="meta"), None, *saved, of_maps, lengths, frames,
                              [True, False])  # fmt: skip


def dots(frames, batch, bands, padded, channels_last):
    x = feature(batch, 3, frames, bands)
    products = dots_kernels.forward(x, x)
    dots_kernels.backward(products, x, x, [True, True])


def gram(axis):
    def run(frames, batch, bands, padded, channels_last):
        x = feature(batch, 24, frames, bands, channels_last=channels_last)
        gram_kernels.backward(gram_kernels.forward(x, axis, True), x, axis, True)

    return run


def spectral(frames, batch, bands, padded, channels_last):
    x = torch.empty(batch, bands + 1, frames, 2, device="meta")
    if channels_last:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    options = 0.3, 1e-12, valid(batch, padded), frames
    grads = spectral_kernels.forward(x, x, *options)
    spectral_kernels.backward(*grads, x, x, *options)


def pointwise(frames, batch, bands, padded, channels_last):
    x = feature(batch, 24, frames, bands, channels_last=channels_last)
    operands = x, x, None, None, "squared", 0.0, valid(batch, padded), frames
    pointwise_kernels.backward(pointwise_kernels.forward(*operands), *operands)


def project(frames, batch, bands, padded, channels_last):
    x = feature(batch, 24, frames, bands, channels_last=channels_last)
    weight, attention = torch.empty(24, 24, device="meta"), torch.empty(batch, 2, device="meta")
    operands = x, weight, [x, x], None, attention, valid(batch, padded), frames
    project_kernels.forward(*operands)
    project_kernels.backward(torch.empty(batch, device="meta"), *operands, [True, True, False, True])


def divergence(kind, planes):
    def run(frames, batch, bands, padded, channels_last):
        x = torch.empty((batch, 40, frames * bands) if planes else (batch * frames, 333, 1), device="meta")
        ignore = torch.empty(x.shape[0] * x.shape[2], dtype=torch.bool, device="meta") if padded else None
        values, saved = divergence_kernels.forward(x, x, ignore, kind, 0.5, 2.0, None, True)
        divergence_kernels.backward(values, x, x, saved, kind, 0.5, 2.0, None)

    return run


def pyramid(frames, batch, bands, padded, channels_last):
    x = feature(batch, 24, frames, bands, channels_last=channels_last)
    errors, cells = pyramid_kernels.forward(x, x, [4, 2, 1], valid(batch, padded), frames)
    pyramid_kernels.backward(errors, x, x, cells, [4, 2, 1], valid(batch, padded), frames)


def correlation(planes):
    def run(frames, batch, bands, padded, channels_last):
        x = torch.empty((batch, 40, frames * bands) if planes else (batch * frames, 333, 1), device="meta")
        ignore = torch.empty(x.shape[0] * x.shape[2], dtype=torch.bool, device="meta") if padded else None
        temperature = torch.empty((), dtype=torch.float64, device="meta")
        distance, _, *saved = correlation_kernels.forward(x, x, ignore, temperature)
        correlation_kernels.backward(distance, distance, x, x, ignore, temperature, *saved)

    return run


OPS = {
    "pyramid": pyramid,
    "correlation, planes": correlation(True),
    "correlation, rows": correlation(False),
    "tap": tap,
    "compress": compress,
    "dots": dots,
    **{f"gram of {axis}": gram(axis) for axis in GRAM_AXES},
    "spectral": spectral,
    "pointwise": pointwise,
    "project": project,
    **{f"{name}, planes": divergence(kind, True) for kind, name in enumerate(DIVERGENCES)},
    **{f"{name}, rows": divergence(kind, False) for kind, name in enumerate(DIVERGENCES)},
}


def keys_of(run, bands, padded, other_layout):
    """The launcher's keys of each kernel, over all sizes."""
    keys = defaultdict(set)
    with compiled_triton.recorded(TARGET) as launches:
        for frames, batch in SIZES:
            run(frames, batch, bands, padded, other_layout)
    for launch in launches:
        keys[launch[0]].add(compiled_triton.key(launch, TARGET))
    return keys


LAUNCHED = set()
CASES = [
    pytest.param(name, bands, padded, other_layout, id=f"{name}, {of_bands}, {padded=}, {other_layout=}")
    for name, (of_bands, bands), padded, other_layout in itertools.product(OPS, BANDS.items(), *[(False, True)] * 2)
    if not (padded and name.startswith(("dots", "gram")))  # they take no lengths
    if not (other_layout and ("dots" in name or "planes" in name or "rows" in name))
]


@pytest.mark.parametrize("name, bands, padded, other_layout", CASES)
def test_few_kernels_serve_all_lengths_and_batch_sizes(name, bands, padded, other_layout):
    """other_layout: channels_last, bands-last spectra, or pooled maps of compress."""
    keys = keys_of(OPS[name], bands, padded, other_layout)
    assert len(keys) >= 2
    LAUNCHED.update(keys)
    numbers = {f"{kernel.__module__}.{kernel.__name__}": len(of_kernel) for kernel, of_kernel in keys.items()}
    assert max(numbers.values()) <= MOST_KEYS, numbers


def test_each_kernel_of_the_library_is_counted():
    """Those above, and no kernel is compiled for particular sizes by mistake: each is a triton_layers.kernel."""
    for run in OPS.values():
        with compiled_triton.recorded(TARGET) as launches:
            run(200, 2, 64, True, False)
        LAUNCHED.update(launch[0] for launch in launches)
    kernels = {
        value
        for op in compiled_triton.OPS
        for name, value in vars(op).items()
        if name.endswith("_kernel") and isinstance(value, triton.JITFunction)
    }
    assert kernels and kernels == LAUNCHED
    for kernel in kernels:
        free = [p.name for p in kernel.params if not (p.do_not_specialize or p.is_constexpr or p.name.endswith("_ptr"))]
        assert not free, (kernel.__module__, kernel.__name__)


@triton.jit
def planted_sizes_kernel(x_ptr, sizes):
    tl.store(x_ptr, sizes[0])


def test_ints_in_tuples_are_what_recompiles():
    """So that the day on which Triton leaves tuples alone, `sizes` can go."""
    x = torch.empty(1)
    keys = [
        {compiled_triton.key((planted_sizes_kernel, (x, items(number)), {}, {}), TARGET) for number in range(200)}
        for items in (lambda number: (number,), lambda number: triton_layers.sizes([number]))
    ]
    assert list(map(len, keys)) == [3, 1]


# -------------------------------------------------------------------------------------------- addresses

# What hands a product on. A quotient does not: compress, which divides products of two sizes, asks on the host whether
# they fit (_index).
CARRIERS = {
    "arith.addi", "arith.subi", "arith.muli", "arith.shli", "arith.extsi", "arith.extui", "arith.trunci",
    "arith.select", "arith.maxsi", "arith.minsi", "tt.splat", "tt.broadcast", "tt.expand_dims", "tt.reshape",
    "tt.trans",
}  # fmt: skip


def edges(operations):
    """(result, operand) of what hands values on: CARRIERS, and loops and branches, whose bodies yield them."""
    owner = {op.get_region(i).id(): op for op in operations for i in range(op.get_num_regions())}
    for op in operations:
        name = op.get_name()
        operands = [op.get_operand(i) for i in range(op.get_num_operands())]
        if name in CARRIERS:
            yield from ((op.get_result(0), operand) for operand in operands)
        if name not in ("scf.yield", "scf.condition"):
            continue
        around, block = owner[op.get_block().get_parent().id()], op.get_block()
        of_around = [around.get_operand(i) for i in range(around.get_num_operands())]
        results = [around.get_result(i) for i in range(around.get_num_results())]
        arguments = [block.get_argument(i) for i in range(block.get_num_arguments())]
        if around.get_name() == "scf.for":  # operands: begin, end, step, first values
            yield arguments[0], of_around[0]
            arguments, of_around = arguments[1:], of_around[3:]
        if name == "scf.condition":  # the loop's results are what it hands on; its first operand is the condition
            yield from zip(results, operands[1:], strict=True)
            yield from zip(arguments, of_around, strict=True)
        elif around.get_name() == "scf.while":
            yield from zip(results, operands, strict=False)
        else:
            yield from zip(results, operands, strict=True)
            yield from zip(arguments, operands, strict=True) if arguments else ()
            yield from zip(arguments, of_around, strict=True) if arguments else ()


def narrow_products(launch):
    """Where 32-bit products that reach an address are computed."""
    module, context = compiled_triton.intermediate(launch, TARGET)
    operations = []
    module.walk(operations.append)
    behind, product = defaultdict(list), {}
    for result, operand in edges(operations):
        behind[result.id()].append(operand.id())
    for op in operations:
        if op.get_name() in ("arith.muli", "arith.shli") and "i64" not in str(op.get_result(0).get_type()):
            product[op.get_result(0).id()] = str(op.get_result(0).get_loc())
    waiting = [op.get_operand(1).id() for op in operations if op.get_name() == "tt.addptr"]
    assert waiting
    seen = set()
    while waiting:
        value = waiting.pop()
        if value not in seen:
            seen.add(value)
            waiting += behind[value]
    return [place for value, place in product.items() if value in seen]


@pytest.mark.parametrize("case", compiled_triton.CASES)
def test_no_product_of_32_bits_reaches_an_address(case):
    with compiled_triton.recorded(TARGET) as launches:
        compiled_triton.CASES[case]()
    assert launches
    found = {launch[0].__name__: places for launch in launches if (places := narrow_products(launch))}
    assert not found


@triton_layers.kernel
def planted_row_kernel(x_ptr, stride, WIDE: tl.constexpr):
    row = tl.arange(0, 16)
    if WIDE:
        row = row.to(tl.int64)
    tl.store(x_ptr + row[:, None] * stride + tl.arange(0, 4)[None, :], 1.0)


@triton_layers.kernel
def planted_loop_kernel(x_ptr, stride, WIDE: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) if WIDE else tl.program_id(0)
    place = start * stride
    for _ in range(0, stride):
        tl.store(x_ptr + place, 1.0)
        place += stride


@triton_layers.kernel
def planted_begin_kernel(x_ptr, stride, WIDE: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) if WIDE else tl.program_id(0)
    for place in range(start * stride, (start + 1) * stride):
        tl.store(x_ptr + place, 1.0)


@triton_layers.kernel
def planted_while_kernel(x_ptr, stride, WIDE: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) if WIDE else tl.program_id(0)
    place = start * stride
    while place > stride:
        place -= 1
    tl.store(x_ptr + place, 1.0)


@pytest.mark.parametrize("wide", [False, True], ids=["32 bits", "64 bits"])
@pytest.mark.parametrize(
    "kernel",
    [planted_row_kernel, planted_loop_kernel, planted_begin_kernel, planted_while_kernel],
    ids=lambda kernel: kernel.__name__,
)
def test_planted_products_are_found(kernel, wide):
    launch = (kernel, (torch.empty(1), 100), {"WIDE": wide}, {})
    assert bool(narrow_products(launch)) != wide
