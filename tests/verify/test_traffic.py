"""GPU kernels move few bytes more than they must: counted for Triton in its interpreter, for CUDA in the emulator."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from abckd_kernels import backends
from abckd_verify import environment, traffic
from abckd_verify.machines.emulator_counter import EmulatedTraffic
from abckd_verify.machines.interpreter_counter import NotCounted, Traffic, counting
from abckd_verify.ops import SPECS
from abckd_verify.running import Run
from abckd_verify.spec import MEGABYTE, cases, tensors

HERE = Path(__file__).parent
SECTOR = 32

pytestmark = pytest.mark.skipif(backends.TRITON_INTERPRET, reason="the counting starts its own processes")


@pytest.fixture(scope="module")
def triton():
    pytest.importorskip("triton")


# ---------------------------------------------------------------------------------------------- the gates


# Counted when first asked for, once: pytest keeps what a fixture raised, too.
@pytest.fixture(scope="module")
def rows_of_triton(triton):
    return traffic.measure("triton")


@pytest.fixture(scope="module")
def rows_of_cuda():
    try:
        return traffic.measure("cuda")
    except NotCounted as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    "backend, spec, case",
    [
        pytest.param(backend, spec, case, id=f"{backend}-{spec.name}-{case}")
        for backend in traffic.BACKENDS
        for spec, case in traffic.of(backend)
    ],
)
def test_gate(request, backend, spec, case):
    rows = request.getfixturevalue(f"rows_of_{backend}")
    of_case = [row for row in rows if row["id"] == f"{spec.name}-{case}" and not row["op"].startswith("step")]
    assert [row["op"] for row in of_case] == [f"{spec.name}_forward", f"{spec.name}_backward"]
    assert all(row["moved"] > 0 and row["limits"] for row in of_case)
    assert not traffic.failures(of_case)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("op", traffic.STEP)
def test_a_step_of_abc_loss(rows_of_cuda, op, dtype):
    (row,) = [row for row in rows_of_cuda if (row["op"], row["dtype"]) == (op, dtype)]
    assert row["limits"] and not traffic.failures([row])


def test_every_cuda_kernel_is_counted(rows_of_cuda):
    counted = {name.partition("<")[0] for row in rows_of_cuda for name in row["kernel"].split(" + ")}
    assert counted == {name for spec in SPECS.values() for name in spec.launches.get("cuda", ())}


def test_arguments_are_large():
    for backend, least in (("triton", MEGABYTE / 10), ("cuda", MEGABYTE)):
        for spec, case in traffic.of(backend):
            if spec.name != "compress":
                assert max(x.nbytes for x in tensors(spec.make(case, "meta", "empty").values())) >= least, case


# ---------------------------------------------------------------------------------------------- the counter counts

PLANTED = {  # launches; and per launch: loaded, stored, unique_loaded, unique_stored bytes
    "copy_once": (2, 4096, 4096, 4096, 4096),
    "copy_reading_twice": (1, 8192, 4096, 4096, 4096),
    "copy_under_a_mask": (1, 400, 240, 13 * SECTOR, 8 * SECTOR),
    "read_every_eighth": (1, 512, 512, 4096, 512),
    "copy_by_descriptor": (1, 4096, 4096, 4096, 4096),
    "add_atomically": (1, 32, 32, SECTOR, SECTOR),
    "read_one_from_a_function": (1, 4, 4, SECTOR, SECTOR),
    "copy_all_but_one_again": (1, 4096 + 4092, 4096 + 4092, 4096, 4096),
}


@pytest.fixture(scope="module")
def planted(triton):
    """Traffic of the kernels in planted_traffic.py."""
    command = [sys.executable, str(HERE / "planted_traffic.py")]
    settings = environment(TRITON_INTERPRET="1")
    result = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("kernel", PLANTED)
def test_planted_kernels_are_counted_exactly(planted, kernel):
    launches, *expected = PLANTED[kernel]
    counted = planted[kernel]
    assert counted["launches"] == launches
    assert [counted[name] for name in ("loaded", "stored", "unique_loaded", "unique_stored")] == [
        launches * value for value in expected
    ]


def test_without_the_interpreter_counting_is_refused(triton):
    with pytest.raises(NotCounted, match="TRITON_INTERPRET=1"), counting():
        pass


# ---------------------------------------------------------------------------------------------- what rows say


def row(backend="triton", op="tap_forward", case="even", moved=100, **more):
    what = {"dtype": "float32", "layout": "contiguous", "shape": [1, 2, 3, 4], "limits": {"ratio": 1.05}}
    sizes = {"moved": moved, "unique": 100, "compulsory": 100, "kernel": "k"}
    return traffic.with_ratios({"backend": backend, "op": op, "case": case} | what | sizes | more)


SECTORS = {"sectors": 110, "ideal_sectors": 100, "loaded": 80, "loaded_by_16": 60}


UNIQUE, OF_SECTORS = {"limits": {"unique_ratio": 1.05}}, {"limits": {"sectors_over_ideal": 1.05}}


@pytest.mark.parametrize(
    "failing",
    [row(moved=106), row(unique=106, **UNIQUE), row("cuda", **SECTORS, **OF_SECTORS)],
    ids=["moved", "unique", "sectors"],
)
def test_a_gate_fails(failing):
    (sentence,) = traffic.failures([failing])
    assert failing["op"] in sentence and "at most 1.05" in sentence and "**" in traffic.table([failing])


@pytest.mark.parametrize(
    "passing", [row(moved=105), row(moved=700, **UNIQUE), row("cuda", **SECTORS)], ids=["limit", "cache", "no gate"]
)
def test_what_no_gate_forbids(passing):
    assert not traffic.failures([passing]) and "**" not in traffic.table([passing])


def test_a_sum_of_rows():
    parts = [row("cuda", "compress_forward", moved=90), row("cuda", "tap_forward", moved=130)]
    found = traffic.total("step_forward", parts)
    assert (found["moved"], found["compulsory"], found["ratio"]) == (220, 200, 1.1)
    assert len(traffic.failures([found])) == 1


@pytest.mark.parametrize(
    "name, dtype, layout, aligned",
    [("even", "float32", "contiguous", True), ("odd", "float32", "contiguous", False)],
)
def test_sectors_of_rows_that_are_not_aligned_may_be_twice(name, dtype, layout, aligned):
    spec = SPECS["spectral"]
    case = next(x for x in spec.traffic if str(x) == f"{name}-{dtype}-{layout}")
    run = Run(spec, spec.make(case.sized(1)))
    run.forward()
    moved = EmulatedTraffic(1, 1, 1, 1, 1, sectors=1, ideal_sectors=1, loaded_by_16=1)
    found = traffic.row("cuda", spec, case, "forward", {"k": moved}, run)
    assert found["limits"]["sectors_over_ideal"] == (1.05 if aligned else 2.0)


def _case(op, **options):
    (case,) = cases("by hand", (torch.bfloat16 if op == "tap" else torch.float32,), **options)
    run = Run(SPECS[op], SPECS[op].make(case))
    run.forward(), run.backward()
    return run.bytes("forward"), run.bytes("backward")


def test_compulsory_bytes_by_hand():
    # A feature of 240 bytes; its map has 160, its means have 24.
    shape = {"batch": 2, "shapes": [(3, 4, 5)]}
    assert _case("tap", **shape) == (240 + 160 + 24, 3 * 240 + 160 + 24)
    assert _case("tap", **shape, means=False) == (240 + 160, 3 * 240 + 160)
    # 5 of 8 frames; the lengths themselves are 16 bytes.
    assert _case("tap", **shape, lengths=(4, 1)) == (150 + 160 + 24 + 16, 150 + 480 + 100 + 24 + 16)
    # Spectra of 480 bytes, of which 300 are valid; two errors of 8 bytes.
    assert _case("spectral", batch=2, bins=(5, 6)) == (2 * 480 + 16, 3 * 480 + 16)
    assert _case("spectral", batch=2, bins=(5, 6), lengths=(6, 2)) == (2 * 320 + 16 + 16, 2 * 320 + 480 + 16 + 16)
    # Logits of 120 bytes; 6 rows' values and 4 numbers for backward of each.
    assert _case("divergence", batch=2, rows=(5, 3), kind="kl") == (2 * 120 + 24 + 96, 3 * 120 + 24 + 96)
    # Maps of 160 bytes; distances (2, 1), attention (2, 1, 2) and its gradients, gradients on the grid.
    one = {"batch": 2, "students": [(4, 5)], "teachers": [(4, 5)] * 2}
    assert _case("compress", **one) == (3 * 160 + 8 + 16 + 16 + 160, 8 + 2 * 160)


def test_a_broken_count_is_an_error_and_not_a_skip(monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")  # the command that fails
    with pytest.raises(RuntimeError, match="counting triton failed"):
        traffic.measure("triton")


def test_what_one_launch_stores_and_the_next_loads_is_carried_once():
    first = Traffic(1, loaded=640, stored=64, unique_loaded=640, unique_stored=64)
    second = Traffic(1, loaded=64, stored=32, unique_loaded=64, unique_stored=32)
    spec = SPECS["dots"]
    run = Run(spec, spec.make(spec.cases[0]))
    run.forward()
    run.bytes = lambda direction: 672
    counted = traffic.row("triton", spec, spec.cases[0], "forward", {"tap.first": first, "tap.second": second}, run)
    assert counted["moved"] == 640 + 64 + 64 + 32 and counted["unique"] == 640 + 64 + 32
    assert counted["kernel"] == "tap.first + tap.second" and counted["ratio"] == 800 / 672
