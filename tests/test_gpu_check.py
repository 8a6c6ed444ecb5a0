"""`make gpu-check` itself, where there is no GPU: it says so, and a dry run on the CPU goes through the same code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fake_cuda
import pytest
import torch

from abckd_kernels import backends, use_backend
from benchmarks import correctness, gpu_check, gpu_numerics, gpu_parts, gpu_timings

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
NATIVE = "cpu" if backends.extension() else "reference"
FEW = list(gpu_numerics.CHECKS)[:45]

pytestmark = pytest.mark.skipif(backends.TRITON_INTERPRET, reason="the interpreter is no backend of the dry run")


def run(*arguments, **environment):
    command = [sys.executable, "-m", "benchmarks.gpu_check", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)


def test_without_a_gpu_it_says_so_in_one_sentence():
    result = run(CUDA_VISIBLE_DEVICES="", HIP_VISIBLE_DEVICES="")
    assert result.returncode == 1 and not result.stdout
    assert result.stderr == "gpu_check needs a GPU that PyTorch can use, and there is none here.\n"


def test_dry_run_writes_a_report(tmp_path):
    file = tmp_path / "folder" / "report.json"
    parts = [f"--only={name}:{NATIVE}" for name in ("repeats", "graph", "memcheck")]
    result = run("--device", "cpu", "--quick", "--json", str(file), *parts)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(file.read_text())
    assert {name.partition(":")[0]: part["status"] for name, part in report["parts"].items()} == {
        "repeats": "passed",
        "graph": "skipped",
        "memcheck": "skipped",
    }
    assert report["finished"] and report["machine"]["torch"] == torch.__version__


def test_order_of_the_parts():
    names = gpu_check.parts(["cuda", "triton"])
    assert names[:2] == ["numerics:cuda", "numerics:triton"] and len(set(names)) == len(names) == 13
    assert names.index("timings") < names.index("memcheck:cuda")


# ---------------------------------------------------------------------------------------------- numerics


@pytest.mark.parametrize("name", FEW)
def test_checks_pass_on_the_cpu(backend, name):
    gpu_numerics.CHECKS[name](CPU)


def test_the_first_checks_cover_every_op_and_dtype():
    covered = {tuple(name.split(", ")[:2]) for name in FEW}
    assert len(covered) == 10  # compress takes two dtypes


@pytest.mark.parametrize("name", ["tap_all", "compress", "abc_loss"])
@pytest.mark.parametrize("factor", [0.0, -1.0, 1.01])
def test_checks_reject_wrong_gradients(monkeypatch, name, factor):
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return factor * grad

    def wrong(layers, *others, **options):
        return original([Wrong.apply(x) for x in layers], *others, **options)

    original = getattr(gpu_numerics, name)
    monkeypatch.setattr(gpu_numerics, name, wrong)
    first_name = next(x for x in gpu_numerics.CHECKS if x.startswith(name.removesuffix("_all") + ", float32"))
    with pytest.raises(AssertionError, match="gradient"):
        gpu_numerics.CHECKS[first_name](CPU)


# ---------------------------------------------------------------------------------------------- parts and timings


@pytest.fixture
def setting():
    return gpu_parts.Setting("cpu", [NATIVE], quick=True)


@pytest.fixture
def stand_in(monkeypatch):
    """The CPU passes for a GPU, so that the lines which only run on one run here too. Gives its properties."""
    monkeypatch.setattr(gpu_parts.Setting, "is_gpu", True)
    return fake_cuda.install(monkeypatch, gpu_parts)


def test_timings(setting, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # the real one takes its time
    recorded = []
    setting.record = lambda rows: recorded.append(len(rows))
    rows = gpu_timings.timings(setting)
    assert recorded == [1, 2, 3] and {row["op"] for row in rows} == {"abc", "tap"}
    for row in rows:
        assert not row["errors"] and set(row["milliseconds"]) >= {"eager", "compile", "ours"}
        shown = gpu_check.show("timings", {"status": "passed", "seconds": 1, "message": "", "results": rows})
        rate = row["compulsory_megabytes"] / row["milliseconds"]["ours"]["total"]
        assert f"{rate:.0f} GB/s" in shown and f"{rate / row['bandwidth']['copy']:.0%} of copy" in shown


def test_timings_of_a_wrong_gradient_fail(setting, monkeypatch):
    def wrong(subject, setup, effort):
        if subject.name == "tap":
            raise correctness.Wrong("the gradient is off by 1")
        return {"errors": {NATIVE: "planted"} if setup.dtype == torch.bfloat16 else {}}

    monkeypatch.setattr(gpu_timings, "row", wrong)
    with pytest.raises(AssertionError, match=f"abc, bfloat16.*{NATIVE}: planted; tap, float32.*the gradient is off"):
        gpu_timings.timings(setting)


def test_the_work_of_the_sanitizer(setting):
    gpu_parts.small(setting, NATIVE)


def test_repeats_find_a_bit_that_changes(setting, monkeypatch):
    step = gpu_parts.training_step
    noise = iter(range(10**6))
    monkeypatch.setattr(gpu_parts, "training_step", lambda *inputs: [x + 1e-3 * next(noise) for x in step(*inputs)])
    with pytest.raises(AssertionError, match="other bits"):
        gpu_parts.repeats(setting, NATIVE)


def test_numerics_report_every_failing_check(setting, monkeypatch):
    def fails(device):
        raise AssertionError("planted")

    checks = {"bad": fails, "good": lambda device: None, "worse": fails}
    monkeypatch.setattr(gpu_numerics, "CHECKS", checks)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *_, **__: None)
    seen = []
    setting.record = seen.append
    with pytest.raises(AssertionError, match="2 of 3 checks failed.*bad: AssertionError: planted.*worse"):
        gpu_parts.numerics(setting, NATIVE)
    assert seen[-1]["done"] == 3


# ---------------------------------------------------------------------------------------------- failing parts


def test_a_failing_part_is_recorded_with_what_it_had(setting, monkeypatch, tmp_path):
    def breaks(setting, backend):
        setting.record({"so far": 1})
        raise ValueError(f"planted in {backend}")

    monkeypatch.setitem(gpu_check.PER_BACKEND, "numerics", (breaks, 1))
    assert not gpu_check.run_part("numerics:cpu", setting, tmp_path / "part.json")
    report = json.loads((tmp_path / "part.json").read_text())
    assert report == {"status": "failed", "message": "ValueError: planted in cpu", "results": {"so far": 1}}


@pytest.mark.parametrize(
    "script, limit, message",
    [("echo planted; exit 3", 60, "exit code 3: planted"), ("sleep 60", 0.5, "was ended after 0.5 s"),
     ("kill -SEGV $$", 60, "exit code -11")],
    ids=["exit", "hang", "crash"],
)  # fmt: skip
def test_a_part_whose_process_dies_is_recorded(setting, monkeypatch, tmp_path, script, limit, message):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setitem(gpu_check.PER_BACKEND, "repeats", (gpu_parts.repeats, limit))
    report = gpu_check.start_part("repeats:cpu", setting)
    assert report["status"] == "failed" and message in report["message"] and report["seconds"] < 30
    assert "failed" in gpu_check.show("repeats:cpu", report)


# ---------------------------------------------------------------------------------------------- stand-ins for a GPU


def test_graph(setting, stand_in):
    gpu_parts.graph(setting, NATIVE)


def test_a_replay_that_does_nothing_is_found(setting, stand_in, monkeypatch):
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda self: None)
    with pytest.raises(AssertionError, match="replay differs"):
        gpu_parts.graph(setting, NATIVE)


def test_numerics_stop_when_the_gpu_is_lost(setting, stand_in, monkeypatch):
    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *_, **__: None)
    with pytest.raises(AssertionError, match="1 of 1 checks failed.*answers no more"):
        gpu_parts.numerics(setting, NATIVE)


def test_one_gpu_is_no_second_one(setting, stand_in):
    with pytest.raises(gpu_parts.Skipped, match="one GPU"):
        gpu_parts.second_gpu(setting, NATIVE)


def test_machine_names_every_gpu(stand_in):
    assert gpu_check.machine("cuda")["gpus"][0]["L2_cache_size"] == stand_in.L2_cache_size


def test_sanitizer_findings_fail_the_part(setting, stand_in, monkeypatch, tmp_path):
    tool = tmp_path / "compute-sanitizer"
    tool.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    tool.write_text('#!/bin/sh\necho "========= ERROR SUMMARY: 0 errors"\n')
    assert gpu_parts.memcheck(setting, NATIVE) == {"summary": ["========= ERROR SUMMARY: 0 errors"]}
    tool.write_text('#!/bin/sh\necho "Invalid __global__ read of size 4"; exit 9\n')
    with pytest.raises(AssertionError, match="exit code 9: Invalid __global__ read"):
        gpu_parts.memcheck(setting, NATIVE)


def test_backends_of_a_gpu_never_include_the_reference():
    assert "reference" not in gpu_check.able("cuda") and "reference" in gpu_check.able("cpu")
    with use_backend("reference"):
        assert NATIVE in gpu_check.able("cpu")
