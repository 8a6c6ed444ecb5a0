"""abckd_verify.predict on numbers that can be done by hand, and on all ops."""

from __future__ import annotations

import pytest

from abckd_verify import predict
from abckd_verify.machines.compiled import Kernel
from abckd_verify.machines.machine_code import Instruction
from abckd_verify.machines.occupancy import LIMITS
from abckd_verify.ops import SPECS

TAP = SPECS["tap"]
CASE = TAP.timed[0].sized(8)  # float32
FEATURES, MAPS = (32 + 64 + 64) * 8 * 200 * 64 * 4, 3 * 8 * 200 * 64 * 4


def row(**other) -> dict:
    return {
        "backend": "cuda", "op": "tap_forward", "kernel": "tap_planes_kernel<float, false>", "compulsory": 1000,
        "moved": 1100, "loaded": 1000, "unique_ratio": 1.05,
    } | other  # fmt: skip


def test_bytes_over_bandwidth():
    assert predict.fewest_bytes(TAP, CASE, "forward") == FEATURES + MAPS
    one = predict.predict(TAP, CASE, "forward", "H100", row(), 10)
    assert one.bytes == pytest.approx(1.05 * (FEATURES + MAPS))
    assert one.memory == pytest.approx(one.bytes / 3.35e12)
    assert one.issue == pytest.approx((FEATURES + MAPS) / 512 * 10 / (132 * 4 * 1.98e9))
    assert one.total == pytest.approx(3e-6 + one.memory)
    assert one.bound == "memory"


def test_a_warp_of_64_lanes_loads_twice_as_much():
    assert predict.GPUS["MI300X"].lanes == LIMITS["gfx942"].warp_size
    one = predict.predict(TAP, CASE, "forward", "MI300X", row(), 10)
    assert one.issue == pytest.approx((FEATURES + MAPS) / 1024 * 10 / (304 * 4 * 2.1e9))


def test_what_bounds():
    assert predict.predict(TAP, CASE, "forward", "H100", row(), 1000).bound == "issue"
    (small,) = (case for case in TAP.cases if str(case) == "(1, 1, 1), power 1-float32-contiguous")
    assert predict.predict(TAP, small, "forward", "H100", row(), 10).bound == "launch"


def test_unknown_loop_leaves_issue_out():
    one = predict.predict(TAP, CASE, "forward", "H100", row(), None)
    assert one.issue is None
    assert one.bound == "memory"


def test_backward_reads_twice_and_writes():
    assert predict.fewest_bytes(TAP, CASE, "backward") == 3 * FEATURES + MAPS


def test_double_arithmetic_of_compress():
    case = SPECS["compress"].timed[0].sized(8)
    cells, products = 8 * 200 * 64, 3 * 7 + 21
    cycles = cells * ((2 * products + 9) / 2 + (products + 21) / 2)
    one = predict.predict(SPECS["compress"], case, "forward", "RTX5090", row(op="compress_forward"), None)
    assert one.double == pytest.approx(cycles / (170 * 2.407e9)) and one.bound == "double"
    assert predict.predict(TAP, CASE, "forward", "RTX5090", row(), None).double == 0


def test_the_hungriest_kernel_of_an_op_counts():
    def kernel(name, instructions):
        load, add = Instruction("load", loads=16), Instruction("add")
        loop = [load, *[add] * (instructions - 2), Instruction("branch", target=0)]
        return Kernel("cuda", name, "f32", "sm_90", 128, 32, 0, 0, [*loop, Instruction("exit")])

    kernels = [kernel("tap_rows_kernel", 5), kernel("tap_planes_kernel", 9), kernel("tap_backward_kernel", 7)]
    found = predict.hungriest(kernels, lambda name: name.partition("_")[0])
    assert found == {("tap", "forward"): 9, ("tap", "backward"): 7}


def test_all_ops_are_predicted_for_all_gpus():
    assert {spec.name for spec, _ in predict.predicted()} == set(SPECS)
    assert {gpu.arch for gpu in predict.GPUS.values()} <= LIMITS.keys()
    for name, gpu in predict.GPUS.items():
        for spec, case in predict.predicted(2):
            for backend in set(gpu.runs) & set(spec.launches):
                for way in predict.DIRECTIONS:
                    counted = row(backend=backend, op=f"{spec.name}_{way}", kernel="a + b")
                    one = predict.predict(spec, case, way, name, counted, 100)
                    assert one.total > one.launch > 0 and one.issue > 0


def test_every_time_is_called_predicted():
    one = predict.predict(TAP, CASE, "forward", "H200", row(), 10)
    header = predict.table([one]).splitlines()[0]
    assert header.count("predicted") == 5
    assert "assumed launch us" in header
