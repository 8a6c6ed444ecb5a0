"""What the Triton kernels share: sizes that don't recompile, several layers in one launch, and launches themselves.

Sizes. Triton compiles a kernel anew for an int that is 1, for one that 16 divides, and for one that is neither. A batch
of other lengths would do that again and again, for seconds each. So a kernel that is launched is a `kernel`, which is
compiled for no particular ints. Triton looks into tuples all the same; ints in them go through `sizes` on the host and
`size` in the kernel. Where a load of 16 bytes needs to know that rows begin at multiples of it, the host says so by a
constant, `width`, and the kernel uses it by `aligned`: two kernels for all sizes.

Layers. A launch serves many of them. What differs between them comes as tuples, one item per layer; the tiles of all
layers are numbered through, and a program picks its own layer's items. That keeps the kernel's body single, where a
branch per layer would repeat it.

Addresses. A tensor may have more than 2^31 elements: what multiplies a size on its way to an address is int64.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, groupby

import torch
import triton
import triton.language as tl
from torch import Tensor

# Left alone, ptxas spills a register or two to reach one more block per multiprocessor, which a kernel that waits for
# memory does not need.
OPTIONS = {} if torch.version.hip else {"maxnreg": 128}
MOST_REGISTERS = 255  # of a thread, for kernels that would spill below: products, sums of rows, loads of one element


def kernel(function: Callable) -> triton.runtime.JITFunction:
    """triton.jit for what is launched: one compilation serves all sizes. Pointers, *_ptr, keep that 16 divides them."""
    parameters = inspect.signature(function).parameters.values()
    names = [x.name for x in parameters if not x.name.endswith("_ptr") and "constexpr" not in str(x.annotation)]
    return triton.jit(function, do_not_specialize=names)


def sizes(numbers: Iterable[int]) -> tuple[int, ...]:
    """Numbers, each at least 0, as items of a kernel's tuple: odd and above 1, which Triton compiles for only once."""
    return tuple(2 * number + 3 for number in numbers)


@triton.jit
def size(item):
    """The number that `sizes` made an item of."""
    return (item >> 1) - 1


def width(x: Tensor, *strides: int) -> int:
    """How many neighbours of `x` a load takes at most, where rows begin at multiples of the strides: 16 bytes, or 1."""
    most = 16 // x.element_size()
    return most if all(stride % most == 0 for stride in strides) else 1


def registers_of_backward(constants: dict, channels_last: bool) -> int | None:
    """For `launch`: all where loads along channels (or positions) take one element, whose addresses fill them."""
    return MOST_REGISTERS if constants["C_WIDTH" if channels_last else "P_WIDTH"] == 1 else None


@triton.jit
def aligned(number, WIDTH: tl.constexpr):
    """A number that WIDTH divides, as int64, in a form in which Triton sees that. Where the host gives a wrong WIDTH,
    results are wrong in the interpreter too; what tl.multiple_of promises is checked by nothing."""
    return tl.cast(number, tl.int64) // WIDTH * WIDTH


@triton.jit
def layer_of(tile, first_tiles):
    """The number of the layer that `tile` belongs to: the last one whose first tile is not behind it."""
    layer = tl.zeros((), tl.int32)
    for index in tl.static_range(1, len(first_tiles)):
        layer += tl.where(tile >= size(first_tiles[index]), 1, 0)
    return layer


@triton.jit
def pick(values, layer):
    """The item of `values` that belongs to a layer."""
    value = values[0]
    for index in tl.static_range(1, len(values)):
        value = tl.where(layer == index, values[index], value)
    return value


@triton.jit
def pick_size(values, layer):
    """The number that the item of a layer stands for."""
    return size(pick(values, layer))


@triton.jit
def count_valid(length, frames, padded_length):
    """Valid frames, as ops.shapes.valid_frames."""
    length = tl.where(length < padded_length, tl.where(length > 0, length, 0), padded_length)
    return (length * frames + padded_length - 1) // padded_length


def first_tiles(counts: Iterable[int]) -> tuple[tuple[int, ...], int]:
    """The first tile of each layer as `sizes`, for layers of so many tiles, and the number of all."""
    ends = list(accumulate(counts, initial=0))
    return sizes(ends[:-1]), ends[-1]


def grouped(layers: Sequence, key: Callable) -> Iterable[tuple]:
    """Layers that can share a launch, as (key, list of layers); `key` holds what must be equal."""
    ordered = sorted(layers, key=lambda layer: repr(key(layer)))
    return ((value, list(group)) for value, group in groupby(ordered, key=key))


def launch(kernel, programs: int, like: Tensor, *args, registers: int | None = None, **constants) -> None:
    """Run `programs` programs of `kernel` on the device of `like`, whichever device is current.

    registers   of a thread, at most, in place of what OPTIONS says; where there is such a limit.
    """
    if programs == 0:
        return
    options = OPTIONS if registers is None or not OPTIONS else {"maxnreg": registers}
    if like.is_cuda:
        with torch.cuda.device(like.device):
            kernel[(programs,)](*args, **constants, **options)
    else:
        kernel[(programs,)](*args, **constants, **options)
