"""What the Triton kernels share: several layers in one launch, and launches themselves.

A launch serves many layers. What differs between them comes as tuples, one item per layer; the tiles of all layers are
numbered through, and a program picks its own layer's items with `pick`. That keeps the kernel's body single, where a
branch per layer would repeat it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, groupby

import torch
import triton
import triton.language as tl
from torch import Tensor

# Left alone, ptxas spills a register or two to reach one more block per multiprocessor, which a kernel that waits for
# memory does not need.
OPTIONS = {} if torch.version.hip else {"maxnreg": 128}


@triton.jit
def pick(values, first_tiles, tile):
    """The item of `values` that belongs to `tile`: the last one whose first tile is not behind it."""
    value = values[0]
    for layer in tl.static_range(1, len(values)):
        value = tl.where(tile >= first_tiles[layer], values[layer], value)
    return value


@triton.jit
def count_valid(length, frames, padded_length):
    """Valid frames, as ops.shapes.valid_frames."""
    length = tl.where(length < padded_length, tl.where(length > 0, length, 0), padded_length)
    return (length * frames + padded_length - 1) // padded_length


def first_tiles(counts: Iterable[int]) -> tuple[tuple[int, ...], int]:
    """The first tile of each layer, for layers of so many tiles, and the number of all."""
    ends = list(accumulate(counts, initial=0))
    return tuple(ends[:-1]), ends[-1]


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
