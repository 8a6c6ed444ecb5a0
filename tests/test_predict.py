"""abckd_verify.predict on numbers that can be done by hand."""

from __future__ import annotations

import pytest

from abckd_verify import predict
from abckd_verify.machines.compiled import Kernel
from abckd_verify.machines.machine_code import Instruction

SIZE = (8, 200, 64)


def kernel(instructions: int) -> Kernel:
    """A kernel whose loop has one load of 16 bytes, as the first of so many instructions."""
    loop = [Instruction("load", loads=16), *[Instruction("add")] * (instructions - 2), Instruction("branch", target=0)]
    return Kernel("cuda", "tap_planes_kernel", "f32, false", "sm_90", 128, 32, 0, 0, [*loop, Instruction("exit")])


def row(**other) -> dict:
    return {
        "backend": "cuda", "op": "tap_forward", "kernel": "tap_planes_kernel<float, false>", "dtype": "float32",
        "layout": "contiguous", "means": False, "compulsory": 1000, "moved": 1100, "loaded": 1000, "unique": 1050,
    } | other  # fmt: skip


def test_bytes_over_bandwidth():
    features = (3 * 32 + 6 * 64) * 8 * 200 * 64 * 4
    maps = 9 * 8 * 200 * 64 * 4
    assert predict.fewest_bytes("tap_forward", "float32", SIZE) == features + maps
    one = predict.predict(row(), "H100", [kernel(10)], "float32", SIZE)
    assert one.bytes == pytest.approx(1.05 * (features + maps))
    assert one.memory == pytest.approx(one.bytes / 3.35e12)
    assert one.issue == pytest.approx((features + maps) / 512 * 10 / (132 * 4 * 1.98e9))
    assert one.total == pytest.approx(3e-6 + one.memory)
    assert one.bound == "memory"


def test_what_bounds():
    assert predict.predict(row(), "H100", [kernel(1000)], "float32", SIZE).bound == "issue"
    assert predict.predict(row(), "H100", [kernel(10)], "float32", (1, 2, 3)).bound == "launch"


def test_unknown_loop_leaves_issue_out():
    one = predict.predict(row(kernel="another_kernel"), "H100", [kernel(1000)], "float32", SIZE)
    assert one.issue is None
    assert one.bound == "memory"


def test_backward_reads_twice_and_writes():
    students = 3 * 32 * 8 * 200 * 64 * 2
    maps = 3 * 8 * 200 * 64 * 4
    assert predict.fewest_bytes("tap_backward", "bfloat16", SIZE) == 3 * students + maps


def test_double_arithmetic_of_compress():
    cells, products = 8 * 200 * 64, 3 * 7 + 21
    cycles = cells * ((2 * products + 9) / 2 + (products + 21) / 2)
    one = predict.predict(row(op="compress_forward"), "RTX4090", [], "float32", SIZE)
    assert one.double == pytest.approx(cycles / (128 * 2.52e9)) and one.bound == "double"
    assert predict.predict(row(), "RTX4090", [], "float32", SIZE).double == 0


def test_every_time_is_called_predicted():
    one = predict.predict(row(), "A100", [kernel(10)], "float32", SIZE)
    header = predict.table([one]).splitlines()[0]
    assert header.count("predicted") == 5
    assert "assumed launch us" in header
    assert "predicted" in predict.steps([one])
