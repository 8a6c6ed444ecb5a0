"""GPU kernels move few bytes more than they must: counted for Triton in its interpreter, for CUDA in the emulator."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from abckd_kernels import backends
from abckd_verify import compulsory, environment, traffic, traffic_cases
from abckd_verify.machines.interpreter_counter import NotCounted, Traffic, counting

ROOT = Path(__file__).parents[1]
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
    "backend, case",
    [pytest.param(name, case, id=f"{name}-{case}") for name in traffic.BACKENDS for case in traffic_cases.of(name)],
)
def test_gate(request, backend, case):
    rows = request.getfixturevalue(f"rows_of_{backend}")
    of_case = [row for row in rows if row["id"] == str(case)]
    assert len(of_case) == (6 if case.kind == "step" else 2)
    assert all(row["moved"] > 0 and traffic.gates(row) for row in of_case if not row["op"].startswith("step"))
    assert not traffic.failures(of_case)


def test_features_have_at_least_a_megabyte():
    for case in traffic_cases.of("cuda"):
        if case.kind != "compress":
            for shape in (*case.students, *case.teachers):
                assert torch.Size(shape).numel() * getattr(torch, case.dtype).itemsize >= 1e6, case


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
    command = [sys.executable, str(ROOT / "tests" / "planted_traffic.py")]
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
    what = {"dtype": "float32", "layout": "contiguous", "means": False, "shape": [1, 2, 3, 4], "students": 1}
    sizes = {"moved": moved, "unique": 100, "compulsory": 100, "kernel": "k"}
    return traffic._with_ratios({"backend": backend, "op": op, "case": case} | what | sizes | more)


SECTORS = {"sectors": 110, "ideal_sectors": 100, "loaded": 80, "loaded_by_16": 60}


@pytest.mark.parametrize(
    "failing",
    [
        row(moved=106),
        row(op="tap_backward", moved=106),
        row(op="compress_forward", unique=106),
        row("cuda", "step_forward", moved=106),
        row("cuda", **SECTORS),
        row("cuda", shape=[1, 2, 3, 3], **(SECTORS | {"sectors": 210})),
    ],
    ids=["read", "backward", "compress", "step", "sectors", "sectors of unaligned rows"],
)
def test_a_gate_fails(failing):
    (sentence,) = traffic.failures([failing])
    assert failing["op"] in sentence and "at most" in sentence and "**" in traffic.table([failing])


@pytest.mark.parametrize(
    "passing",
    [
        row(moved=105),
        row(op="compress_forward", moved=700),
        row("triton", "step_forward", moved=120),
        row("cuda", "step_forward", moved=107, means=True),
        row("cuda", shape=[1, 2, 3, 3], **SECTORS),
        row("cuda", layout="channels_last", **SECTORS),
    ],
    ids=["at the limit", "maps from the cache", "triton's step", "a step with means", "odd rows", "channels_last"],
)
def test_what_no_gate_forbids(passing):
    assert not traffic.failures([passing]) and "**" not in traffic.table([passing])


def test_compulsory_bytes_by_hand():
    x = torch.empty(2, 3, 4, 5, dtype=torch.bfloat16)  # 240 bytes
    maps, means = torch.empty(2, 4, 5), torch.empty(2, 3)  # 160 and 24 bytes
    assert compulsory.tap_forward([x], [maps], [means]) == 240 + 160 + 24
    assert compulsory.tap_forward([x], [maps], []) == 240 + 160
    assert compulsory.tap_backward([x], [x], [maps], [None], [x]) == 3 * 240 + 160
    assert compulsory.tap_backward([None], [x], [maps], [means], [x]) == 2 * 240 + 160 + 24
    assert compulsory.compress_forward([maps] * 3, [means, maps]) == 3 * 160 + 24 + 160
    assert compulsory.compress_backward(means, maps, [maps, maps]) == 24 + 3 * 160
    assert compulsory.spectral_forward([x, x], [means]) == 2 * 240 + 24
    assert compulsory.spectral_backward([x, x], [means], x) == 3 * 240 + 24

    logits, numbers = torch.empty(2, 5, 3), torch.empty(4, 6)  # 120 and 96 bytes
    assert compulsory.divergence_forward(logits, logits, numbers[0], numbers) == 2 * 120 + 24 + 96
    assert compulsory.divergence_backward(numbers[0], logits, logits, numbers, logits) == 3 * 120 + 24 + 96

    lengths = torch.tensor([4, 1])  # 5 of 8 frames; the lengths themselves are 16 bytes
    assert compulsory.tap_forward([x], [maps], [means], lengths, 4) == 240 * 5 // 8 + 160 + 24 + 16
    assert compulsory.tap_backward([x], [x], [maps], [means], [x], lengths, 4) == 150 + 480 + 100 + 24 + 16
    assert compulsory.compress_forward([maps], [means], lengths, 4) == 100 + 24 + 16
    assert compulsory.spectral_forward([x, x], [means], lengths, 4) == 2 * 150 + 24 + 16
    assert compulsory.spectral_backward([x, x], [means], x, lengths, 4) == 2 * 150 + 240 + 24 + 16


def test_a_broken_count_is_an_error_and_not_a_skip(monkeypatch, tmp_path):
    monkeypatch.setattr(traffic, "ROOT", tmp_path)
    with pytest.raises(RuntimeError, match="No module named"):
        traffic.measure("triton")


def test_what_one_launch_stores_and_the_next_loads_is_carried_once():
    first = Traffic(1, loaded=640, stored=64, unique_loaded=640, unique_stored=64)
    second = Traffic(1, loaded=64, stored=32, unique_loaded=64, unique_stored=32)
    case = traffic_cases.CASES[0]
    counted = traffic._row("triton", "tap_forward", case, {"tap.first": first, "tap.second": second}, 672)
    assert counted["moved"] == 640 + 64 + 64 + 32 and counted["unique"] == 640 + 64 + 32
    assert counted["kernel"] == "tap.first + tap.second" and counted["ratio"] == 800 / 672
