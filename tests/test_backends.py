"""The choice of a backend, and what remains where a part is missing."""

import os
import subprocess
import sys
import warnings

import cases
import pytest
import torch

from abckd_kernels import abc_loss, backends, info, tap, use_backend
from abckd_kernels.losses import dist_loss, review_loss

NAMES = "tap compress correlation divergence dots gram pointwise project pyramid spectral".split()
OPS = tuple(f"{op}_{direction}" for op in NAMES for direction in ("forward", "backward"))
native = pytest.mark.skipif(backends.extension() is None, reason="the C++ extension is not built")

COMPACT_CHECK = """
import torch, abckd_kernels
from abckd_kernels import backends
torch.manual_seed(0)
def results(dtype, layout):
    made = [torch.randn(2, 19, 9, 37).to(dtype).to(memory_format=layout).requires_grad_() for _ in range(3)]
    loss = abckd_kernels.abc_loss(made[:1], made[1:], lengths=torch.tensor([9, 5]))
    tapped = abckd_kernels.tap(made[0])
    total = loss + tapped.mean.square().sum() + tapped.feature.float().square().mean()
    return [loss, *tapped[1:], *torch.autograd.grad(total, made[:1])]
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    for layout in (torch.contiguous_format, torch.channels_last):
        outcome = []
        for name in ("cpu", "reference"):
            torch.manual_seed(0)
            with abckd_kernels.use_backend(name):
                outcome.append(results(dtype, layout))
        for a, b in zip(*outcome, strict=True):
            torch.testing.assert_close(a, b)
print(backends.extension().build_info()["CPU instruction set"])
"""


def python(*arguments, **environment):
    """A new process, because the environment is read at import."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ABCKD_", "TRITON_"))}
    return subprocess.run([sys.executable, *arguments], env=inherited | environment, capture_output=True, text=True)


@pytest.fixture(autouse=True)
def auto():
    with use_backend("auto"):
        yield


def test_every_op_is_in_the_table():
    assert sorted(backends.ops()) == sorted(OPS)


@pytest.mark.parametrize("op", OPS)
def test_all_overloads_have_one_schema(op):
    packet = getattr(torch.ops.abckd, op)
    schemas = {str(getattr(packet, name)._schema).replace(f".{name}(", "(") for name in packet.overloads()}
    assert {"default", "triton", "reference"} <= set(packet.overloads()) and len(schemas) == 1


OTHER_VERSION = """
import torch
define = torch.library.Library.define
def with_one_argument_less(self, schema, *args, **kwargs):
    return define(self, schema.replace("_forward(Tensor x, Tensor y)", "_forward(Tensor x)"), *args, **kwargs)
torch.library.Library.define = with_one_argument_less
import abckd_kernels
"""


@native
def test_an_extension_of_another_version_is_named():
    result = python("-c", OTHER_VERSION)
    assert "ImportError: abckd_kernels._C was built from another version" in result.stderr


@native
def test_auto_takes_the_compiled_kernels_for_cpu_tensors():
    compiled = [op for op in OPS if "cpu" in backends._OPS[op]]  # the others are plain PyTorch there
    assert {backends.choose(op, "cpu") for op in compiled} == {"cpu"} and len(compiled) >= 16


def test_call_and_context_manager():
    assert backends.forced() == "auto"
    with use_backend("reference"):
        assert backends.forced() == "reference" and backends.choose("tap_forward", "cpu") == "reference"
        with use_backend("auto"):
            assert backends.forced() == "auto"
        assert backends.forced() == "reference"
    assert backends.forced() == "auto"
    use_backend("reference")
    assert backends.forced() == "reference"


def test_context_manager_restores_after_an_error():
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert backends.forced() == "auto"


def test_the_forced_backend_is_the_one_that_runs(monkeypatch):
    from abckd_kernels.ops.tap import reference

    calls, forward = [], reference.forward
    monkeypatch.setattr(reference, "forward", lambda *args: calls.append(1) or forward(*args))
    tap(torch.randn(2, 3, 4))
    assert len(calls) == (backends.choose("tap_forward", "cpu") == "reference")
    with use_backend("reference"):
        tap(torch.randn(2, 3, 4))
    assert calls


def test_unknown_name():
    with pytest.raises(ValueError, match=r"'avx'.*auto.*cuda.*triton.*cpu.*reference"):
        use_backend("avx")


def test_forcing_what_cannot_serve_says_why_and_what_can():
    with use_backend("cuda"), pytest.raises(RuntimeError, match=r"cuda.*tap_forward.*cpu.*Able: .*reference"):
        tap(torch.randn(2, 3, 4))


@native
@pytest.mark.parametrize("loss", [dist_loss, review_loss])
def test_forcing_the_compiled_kernels_takes_no_loss_away(loss):
    """Their ops have none in this version: PyTorch serves them, and a warning says so once."""
    student, teacher = torch.randn(2, 3, 9, 5), torch.randn(2, 3, 9, 5)
    expected = loss(student, teacher)
    backends._warn_once.cache_clear()
    with use_backend("cpu"):
        with pytest.warns(UserWarning, match="_forward has no cpu implementation in this version: reference serves it"):
            assert loss(student, teacher) == expected
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loss(student, teacher)


def test_a_device_without_kernels_of_the_forced_backend_is_an_error_even_so():
    with use_backend("cpu"), pytest.raises(RuntimeError, match=r"'cpu' .* correlation_forward on cuda: .* Able: .*ref"):
        backends.choose("correlation_forward", "cuda")


@pytest.mark.skipif(backends.TRITON_INTERPRET, reason="the interpreter serves CPU tensors")
def test_triton_serves_no_cpu_tensors_outside_the_interpreter():
    with use_backend("triton"), pytest.raises(RuntimeError, match=r"triton.*TRITON_INTERPRET=1.*Able: .*reference"):
        abc_loss([torch.randn(2, 3, 4)], [torch.randn(2, 3, 4)])


def test_without_the_extension_the_reference_serves(monkeypatch):
    monkeypatch.setattr(backends, "_C", None)
    monkeypatch.setattr(backends, "EXTENSION_ERROR", "the C++ extension is not there (simulated)")
    assert {backends.choose(op, "cpu") for op in OPS} == {"reference"}
    students, teachers = cases.DOWN.features(torch.float32)
    loss = abc_loss(students, teachers)
    loss.backward()
    assert loss > 0 and students[0].grad.abs().max() > 0
    assert "simulated" in info.report()
    with use_backend("cpu"), pytest.raises(RuntimeError, match="simulated"):
        abc_loss(students, teachers)


@pytest.mark.parametrize("device", ["cpu", "cuda", "xpu"])
def test_the_slow_reference_serves_no_device_in_silence(device, monkeypatch):
    monkeypatch.setattr(backends, "_C", None)
    monkeypatch.setattr(backends, "EXTENSION_ERROR", "the C++ extension is not there (simulated)")
    monkeypatch.setattr(backends, "_TRITON_FOUND", False)
    backends._warn_once.cache_clear()
    with pytest.warns(UserWarning, match=rf"slow reference on {device}: .*(simulated|not installed)"):
        assert backends.choose("gram_forward", device) == "reference"


def test_environment_variable():
    program = "import torch, abckd_kernels.backends as b; print(b.forced(), b.choose('tap_forward', 'cpu'))"
    assert python("-c", program, ABCKD_BACKEND="reference").stdout.split() == ["reference", "reference"]
    assert python("-c", program).stdout.split()[0] == "auto"
    wrong = python("-c", program, ABCKD_BACKEND="refrence")
    assert wrong.returncode != 0 and "'refrence'" in wrong.stderr


def test_info():
    result = python("-m", "abckd_kernels.info")
    assert result.returncode == 0, result.stderr
    assert all(result.stdout.count(op) >= 2 for op in OPS)
    assert all(word in result.stdout for word in ("torch", "triton", "on cpu", "on cuda", torch.__version__))


def cpu_flags():
    try:
        with open("/proc/cpuinfo") as file:
            return next((line for line in file if line.startswith("flags")), "").split()
    except OSError:
        return []


@native
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_of_this_machine(isa):
    needed = {"baseline": "", "avx2": "avx2 fma f16c", "avx512": "avx512f avx512bw avx512vl avx512dq"}
    if not set(needed[isa].split()) <= set(cpu_flags()):
        pytest.skip(f"this CPU has no {isa}")
    result = python("-c", COMPACT_CHECK, ABCKD_CPU_ISA=isa)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [isa]


@native
def test_results_do_not_depend_on_the_number_of_threads():
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            x = cases.feature((3, 9, 50, 70)).requires_grad_()
            tapped = tap(x)
            results.append([*tapped[1:], *torch.autograd.grad(tapped.map.square().sum() + tapped.mean.sum(), x)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))
