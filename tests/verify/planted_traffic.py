"""Kernels whose traffic is known, counted in Triton's interpreter; prints {name: traffic} for tests/test_traffic.py."""

import dataclasses
import json

import torch
import triton
import triton.language as tl

from abckd_verify.machines.interpreter_counter import counting

SIZE = 1024  # float32 elements of every tensor


@triton.jit
def copy_once(x_ptr, y_ptr, N: tl.constexpr):
    p = tl.arange(0, N)
    tl.store(y_ptr + p, tl.load(x_ptr + p))


@triton.jit
def copy_reading_twice(x_ptr, y_ptr, N: tl.constexpr):
    p = tl.arange(0, N)
    tl.store(y_ptr + p, tl.load(x_ptr + p) + tl.load(x_ptr + p))


@triton.jit
def copy_under_a_mask(x_ptr, y_ptr, N: tl.constexpr):
    p = tl.arange(0, N)
    tl.store(y_ptr + p, tl.load(x_ptr + p, p < 100, other=0), p < 60)


@triton.jit
def read_every_eighth(x_ptr, y_ptr, N: tl.constexpr):
    p = tl.arange(0, N // 8)
    tl.store(y_ptr + p, tl.load(x_ptr + 8 * p))


@triton.jit
def copy_by_descriptor(x_ptr, y_ptr, N: tl.constexpr):
    x = tl.make_tensor_descriptor(x_ptr, [N], [1], [N])
    y = tl.make_tensor_descriptor(y_ptr, [N], [1], [N])
    y.store([0], x.load([0]))


@triton.jit
def add_atomically(x_ptr, y_ptr, N: tl.constexpr):
    tl.atomic_add(y_ptr + tl.arange(0, N), 1.0, tl.arange(0, N) < 8)


@triton.jit
def item(x_ptr, index):
    return tl.load(x_ptr + index)


@triton.jit
def read_one_from_a_function(x_ptr, y_ptr, N: tl.constexpr):
    tl.store(y_ptr, item(x_ptr, 3))


@triton.jit
def copy_all_but_one_again(x_ptr, y_ptr, N: tl.constexpr):
    """Two programs, of which each copies all but its own last element."""
    p = tl.arange(0, N)
    keep = p < N - tl.program_id(0)
    tl.store(y_ptr + p, tl.load(x_ptr + p, keep), keep)


ONE_PROGRAM = (copy_once, copy_reading_twice, copy_under_a_mask, read_every_eighth, copy_by_descriptor, add_atomically,
               read_one_from_a_function)  # fmt: skip


def main():
    x, y = torch.rand(SIZE), torch.zeros(SIZE)
    with counting() as counter:
        for kernel in ONE_PROGRAM:
            kernel[(1,)](x, y, N=SIZE)
        copy_all_but_one_again[(2,)](x, y, N=SIZE)
        copy_once[(1,)](x, y, N=SIZE)
    kernels = {name.split(".")[-1]: traffic for name, traffic in counter.kernels.items()}
    print(json.dumps({name: dataclasses.asdict(traffic) for name, traffic in kernels.items()}))


if __name__ == "__main__":
    main()
