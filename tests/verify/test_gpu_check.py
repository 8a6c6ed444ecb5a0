"""gpu_check where there is no GPU: its plan, and all that it does but the launches, on a stand-in for a GPU."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time

import fake_cuda
import pytest
import torch

from abckd_kernels import backends, use_backend
from abckd_verify import ROOT, environment, losses, numerics
from abckd_verify.gpu_check import command, parts, plan, setting, worker
from abckd_verify.machines import devices
from abckd_verify.ops import SPECS

NATIVE = "cpu" if backends.extension() else "reference"
CPU = setting.Setting("cpu")
DRY = plan.tasks(setting.Setting(setting.PLANNED), command.PLANNED_FOR)

pytestmark = pytest.mark.skipif(backends.TRITON_INTERPRET, reason="the interpreter is no backend of the rehearsal")


def run(*arguments, **changes):
    line = [sys.executable, "-m", "abckd_verify.gpu_check", *arguments]
    return subprocess.run(line, cwd=ROOT, env=environment(**changes), capture_output=True, text=True)


# ---------------------------------------------------------------------------------------------- the plan


def test_every_op_and_loss_is_checked():
    """By each backend that has the op, in each dtype and layout, and every loss in a graph."""
    ops, of_losses = plan.covered(DRY)
    assert ops == set(SPECS) and of_losses == set(losses.by_name())
    for backend in command.PLANNED_FOR:
        items = {x for task in DRY if task.part.run is parts.op and task.backend == backend for x in task.items}
        assert items == {
            f"{spec.name}/{case}" for spec in SPECS.values() if backend in spec.launches for case in spec.cases
        }
    first = {x for task in DRY if task.part.name == "ops" and task.backend == "triton" for x in task.items}
    for spec in SPECS.values():
        kinds = {(case.dtype, case.layout) for case in spec.cases}
        assert len([x for x in first if x.startswith(f"{spec.name}/")]) == len(kinds)
    graphs = {x.partition("/")[0] for task in DRY if task.part.run is parts.graph for x in task.items}
    timed = {x.partition("/")[0] for task in DRY if task.part.name == "times" for x in task.items}
    assert graphs == set(losses.by_name()) and timed == set(SPECS)


def test_a_forgotten_op_or_loss_is_noticed(monkeypatch):
    """What the test above compares is the library's own list."""
    monkeypatch.delitem(SPECS, "gram")
    assert plan.covered(plan.tasks(setting.Setting(setting.PLANNED), command.PLANNED_FOR))[0] != set(backends_ops())
    assert set(losses.by_name()) == {entry.name for entry in losses.table()}


def backends_ops():
    return {name.rpartition("_")[0] for name in backends.ops()}


def test_what_matters_most_comes_first():
    names = [task.part.name for task in DRY]
    assert names.index("ops") < names.index("losses") < names.index("graphs") < names.index("times")
    assert names.index("times") < names.index("other cases") < names.index("compiled times") < names.index("memcheck")
    untilled = sum(task.planned for task in DRY[: names.index("other cases")])
    assert untilled < command.BUDGET  # numerics, graphs and times of all ops are reached


def test_dry_run_prints_what_is_covered():
    result = run("--dry-run")
    assert result.returncode == 0, result.stderr
    assert f"ops {len(SPECS)} of {len(SPECS)}:" in result.stdout
    assert f"losses {len(losses.by_name())} of {len(losses.by_name())}:" in result.stdout
    assert all(part.name in result.stdout for part in plan.PARTS) and "budget 600 s" in result.stdout


def test_a_part_alone():
    found = plan.tasks(setting.Setting(setting.PLANNED), command.PLANNED_FOR, ["repeats"])
    assert [(task.part.name, task.backend) for task in found] == [("repeats", "cuda"), ("repeats", "triton")]


# ---------------------------------------------------------------------------------------------- the command


def test_without_a_gpu_it_says_so_in_one_sentence():
    result = run(CUDA_VISIBLE_DEVICES="", HIP_VISIBLE_DEVICES="")
    assert result.returncode == 1 and not result.stdout
    assert result.stderr == "gpu_check needs a GPU that PyTorch can use, and there is none here.\n"


def test_a_rehearsal_writes_a_line_for_each_item(tmp_path):
    file = tmp_path / "folder" / "report.jsonl"
    result = run("--device", "cpu", "--part", "repeated losses", "--part", "graphs", "--report", str(file))
    assert result.returncode == 0, result.stdout + result.stderr
    first, *lines = map(json.loads, file.read_text().splitlines())
    assert first["machine"]["torch"] == torch.__version__
    parts_of = ("repeated losses", "graphs")
    statuses = {name: {line["status"] for line in lines if line["part"] == name} for name in parts_of}
    assert statuses == {"repeated losses": {"passed"}, "graphs": {"skipped"}}
    assert len(lines) == 2 * len(losses.by_name()) and "Skipped:" in result.stdout


FAKE = """#!{python}
import json, os, signal, sys, time
items = sys.stdin.read().splitlines()
with open(sys.argv[-1], "a") as file:
    def write(**line):
        file.write(json.dumps({{"part": "ops", "backend": "cpu", **line}}) + "\\n")
        file.flush()
    for item in items:
        write(item=item, status="begun")
        if item == "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        if item == "hangs":
            time.sleep(60)
        lost = item == "loses the GPU"
        write(item=item, status="failed" if lost else "passed", seconds=0, message="planted" * lost, result={{}})
        if lost:
            sys.exit(3)
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A worker that does what its items say. Gives a function that makes a task of items."""
    python = tmp_path / "python"
    python.write_text(FAKE.format(python=sys.executable))
    python.chmod(0o755)
    monkeypatch.setattr(command.sys, "executable", str(python))

    def task(*items, processes=1):
        part = plan.Part("ops", parts.op, lambda backend, device: list(items), 1, 0.1, processes)
        return plan.Task(part, "cpu", "cpu")

    return task


def test_it_goes_on_behind_what_kills_a_process(fake):
    lines = list(command.run_task(fake("a", "crashes", "b", "loses the GPU", "c"), 60))
    assert {line["item"]: line["status"] for line in lines} == {
        "a": "passed", "crashes": "failed", "b": "passed", "loses the GPU": "failed", "c": "passed",
    }  # fmt: skip
    assert "exit code -11" in next(line for line in lines if line["item"] == "crashes")["message"]


def test_an_item_that_hangs_is_ended(fake, monkeypatch):
    monkeypatch.setattr(command, "LONGEST_ITEM", 0.5)
    lines = list(command.run_task(fake("a", "hangs", "b"), 60))
    assert [(line["item"], line["status"]) for line in lines] == [("a", "passed"), ("hangs", "failed"), ("b", "passed")]
    assert "hung for 0.5 s" in lines[1]["message"]


def test_what_time_does_not_reach_is_said(fake):
    start = time.monotonic()
    lines = list(command.run_task(fake("a", "hangs", "b"), 3))
    assert time.monotonic() - start < 20
    assert [(line["item"], line["status"]) for line in lines] == [
        ("a", "passed"), ("hangs", "not reached"), ("b", "not reached"),
    ]  # fmt: skip


def test_items_are_shared_by_processes(fake):
    items = [f"item {k}" for k in range(9)]
    lines = list(command.run_task(fake(*items, processes=8), 60))
    assert sorted(line["item"] for line in lines) == items and {line["status"] for line in lines} == {"passed"}


def test_the_budget_is_shared_and_every_line_is_written(fake, tmp_path, monkeypatch):
    given = []

    def record(task, seconds):
        given.append(seconds)
        return iter([{"part": "ops", "backend": "cpu", "item": "a", "status": "passed", "result": {}, "message": ""}])

    monkeypatch.setattr(command, "run_task", record)
    lines = command.run([fake("a"), fake("b", "c")], 100, tmp_path / "report.jsonl")
    assert len(lines) == 2 and len((tmp_path / "report.jsonl").read_text().splitlines()) == 3
    assert 2 <= given[0] < 60 and given[1] > 95  # the last one gets all that is left


# ---------------------------------------------------------------------------------------------- the worker


def _work(part, items, where=CPU, backend=NATIVE):
    file = io.StringIO()
    status = worker.work(part, backend, where, items, file)
    return status, [json.loads(line) for line in file.getvalue().splitlines()]


def test_a_worker_says_what_begins_and_what_became_of_it(monkeypatch):
    def fails(spec, case, device):
        raise AssertionError(f"planted in {spec.name}")

    monkeypatch.setattr(numerics, "check", fails)
    items = [f"{name}/{SPECS[name].cases[0]}" for name in ("tap", "dots")]
    status, lines = _work("ops", items)
    assert status == 1 and [line["status"] for line in lines] == ["begun", "failed"] * 2
    assert lines[-1]["message"] == "AssertionError: planted in dots"


def test_a_worker_ends_when_the_gpu_is_lost(monkeypatch, stand_in):
    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    items = [f"tap/{case}" for case in SPECS["tap"].cases[:3]]
    status, lines = _work("ops", items, stand_in)
    assert status == worker.LOST and len(lines) == 2 and "answers no more" in lines[-1]["message"]


# ---------------------------------------------------------------------------------------------- on a stand-in for a GPU


@pytest.fixture
def stand_in(monkeypatch):
    """The CPU passes for a GPU, so that the lines which only run on one run here too."""
    fake_cuda.install(monkeypatch)
    monkeypatch.setattr(setting.Setting, "is_gpu", True)
    monkeypatch.setattr(devices.Gpu, "name", "cpu")
    monkeypatch.setattr(devices.Gpu, "copied", 2**20)
    monkeypatch.setitem(devices.DEVICES, "cpu", devices.Gpu)
    return CPU


SMALL = {"REPEATS": 3, "TURNS": 2, "WARM_UP": 1}


@pytest.mark.parametrize("part", plan.PARTS, ids=lambda part: part.name)
def test_each_part_runs_its_first_items(stand_in, monkeypatch, part):
    """One item of each op or loss; sanitizer and second GPU, which are not here, say so."""
    for name, value in SMALL.items():
        monkeypatch.setattr(parts, name, value)
    monkeypatch.setattr(parts, "least_bytes", lambda setting: 2**16)
    monkeypatch.setattr(parts, "find_sanitizer", lambda: None)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # the real one takes its time
    items = {item.partition("/")[0]: item for item in reversed(part.items("auto", "cpu"))}
    status, lines = _work(part.name, items.values(), stand_in, "auto")
    results = [line for line in lines if line["status"] != "begun"]
    assert status == 0 and len(results) == len(items), results
    skipped = part.run in (parts.second_device, parts.memcheck, parts.racecheck)
    assert {line["status"] for line in results} == {"skipped" if skipped else "passed"}


def test_a_replay_that_does_nothing_is_found(stand_in, monkeypatch):
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda self: None)
    with pytest.raises(AssertionError, match="replay differs"):
        parts.graph(stand_in, "at/float32")


def test_repeats_find_a_bit_that_changes(monkeypatch):
    noise = iter(range(10**6))
    forward = parts.Run.forward
    monkeypatch.setattr(parts.Run, "forward", lambda run: {k: _noisy(x, next(noise)) for k, x in forward(run).items()})
    with pytest.raises(AssertionError, match="other bits"):
        parts.repeats(CPU, f"dots/{SPECS['dots'].cases[0]}")


def _noisy(x, number):
    return x + 1e-3 * number


def test_the_second_device_is_used(stand_in, monkeypatch):
    used = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(losses, "check", lambda entry, dtype, device: used.append((entry.name, device)) or {})
    parts.second_device(stand_in, "at/float32")
    assert used == [("at", "cuda:1")]
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    with pytest.raises(AssertionError, match="current device"):
        parts.second_device(stand_in, "at/float32")


def test_sanitizer_findings_fail_the_item(stand_in, monkeypatch, tmp_path):
    tool = tmp_path / "compute-sanitizer"
    tool.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    tool.write_text('#!/bin/sh\ncat > "$0.items"\necho "========= ERROR SUMMARY: 0 errors"\n')
    with use_backend(NATIVE):
        assert parts.memcheck(stand_in, "tap") == {"summary": ["========= ERROR SUMMARY: 0 errors"]}
        items = (tmp_path / "compute-sanitizer.items").read_text().splitlines()
        assert len(items) == 4 and all(parts.find(item, "cases") for item in items)
        tool.write_text('#!/bin/sh\necho "Invalid __global__ read of size 4"; exit 9\n')
        with pytest.raises(AssertionError, match="exit code 9: Invalid __global__ read"):
            parts.racecheck(stand_in, "tap")


def test_machine_names_every_gpu(stand_in):
    assert command.machine("cuda")["gpus"][0]["L2_cache_size"] == fake_cuda.PROPERTIES.L2_cache_size


# ---------------------------------------------------------------------------------------------- the page


def _line(part, status, item="tap/even", **result):
    named = {"part": part, "backend": "cuda", "item": item, "status": status}
    return named | {"message": "planted\nmore", "result": result}


def test_the_page():
    lines = [_line("bandwidth", "passed", "copy", bytes_per_second=1e12), _line("ops", "failed"),
             _line("memcheck", "not reached", "tap"), _line("memcheck", "not reached", "dots")]  # fmt: skip
    for k in range(1, 9):
        way = {"ms": 1.0, "bytes": k * 10**8, "gb_per_s": k * 100.0}
        lines.append(_line("times", "passed", f"tap/{k}", forward=way, backward=way, eager_ms=6.0))
    text = command.page(lines)
    assert "9 passed, 1 failed, 0 skipped, 2 not reached" in text
    assert "ops (cuda) tap/even: planted\n" in text and "memcheck (cuda): 2 items, from tap" in text
    assert "The 10 slowest of 16" in text and "10%      100 GB/s  times (cuda) tap/1 backward" in text
    assert "eager takes 3.0 times as long" in text and "tap/6" not in text
