"""Each op has a complete Spec, which is right by itself, and the op is what its Spec says."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import cases
import numpy as np
import pytest
import torch

import abckd_kernels
from abckd_kernels import backends, ops
from abckd_kernels.ops.contract import CONTRACTS
from abckd_verify import ROOT, numerics
from abckd_verify.ops import SPECS
from abckd_verify.running import Run
from abckd_verify.spec import tensors

EACH = [pytest.param(spec, case, id=f"{spec.name}-{case}") for spec in SPECS.values() for case in spec.cases]
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


# ---------------------------------------------------------------------------------------------- the op is as its Spec


@pytest.mark.parametrize("spec, case", EACH)
def test_numerics(backend, spec, case):
    for direction in ("forward", "backward"):
        if reason := backends.why_not(f"{spec.name}_{direction}", backend, "cpu"):
            pytest.skip(reason)
    numerics.check(spec, case)


@each_spec
@pytest.mark.parametrize("factor", [0.0, -1.0, 1.01])
def test_wrong_gradients_are_found(monkeypatch, spec, factor):
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return factor * grad

    def wrong(*arguments):
        return original(*([Wrong.apply(x) for x in value] if isinstance(value, list) and tensors(value) else
                          Wrong.apply(value) if tensors([value]) and value.is_floating_point() else value
                          for value in arguments))  # fmt: skip

    original = numerics.op(spec)
    monkeypatch.setattr(numerics, "op", lambda spec: wrong)
    with pytest.raises(AssertionError, match="gradient"):
        numerics.check(spec, spec.cases[0])


@each_spec
def test_wrong_results_are_found(monkeypatch, spec):
    def wrong(*arguments):
        results = original(*arguments)
        results = results if isinstance(results, tuple) else (results,)
        results = [[x * 1.01 for x in y] if isinstance(y, list) else y * 1.01 for y in results]
        return results if len(spec.contract.results) > 1 else results[0]

    original = numerics.op(spec)
    monkeypatch.setattr(numerics, "op", lambda spec: wrong)
    with pytest.raises(AssertionError, match="error .* allowed"):
        numerics.check(spec, spec.cases[0])


# ---------------------------------------------------------------------------------------------- a Spec is right


def _float64(spec):
    return {str(case): case for case in spec.cases if case.dtype == torch.float64}.values()


@each_spec
def test_plain_is_exact_in_float64(spec):
    """Values of the form whose gradients all others are held against, and those along a random direction."""
    for case in _float64(spec):
        arguments = spec.make(case)
        outputs, leaves = numerics.differentiable(spec, arguments, numerics.plain_op(spec))
        exact = numerics.values(spec, arguments)
        scale = spec.condition(arguments)
        for name, value in exact.items():
            if name in outputs:
                found = outputs[name].detach().numpy()
                close = np.allclose(found, value.astype(float), rtol=1e-11 * scale, atol=1e-12 * scale)
                assert close, (str(case), name)
        generator = torch.Generator().manual_seed(3)
        ways = {k: torch.randn(x.shape, generator=generator, dtype=x.dtype) for k, x in leaves.items()}
        weights = {k: np.random.default_rng(5).standard_normal(np.shape(exact[k])) for k in exact if k in outputs}
        total = sum((outputs[k] * torch.from_numpy(w)).sum() for k, w in weights.items())
        grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
        slope = sum((g * d).sum().item() for g, d in zip(grads, ways.values(), strict=True))
        step, values = 1e-6, []
        for sign in (1, -1):
            moved = numerics.values(spec, _moved(spec, arguments, ways, sign * step))
            values.append(sum((moved[k] * w).sum() for k, w in weights.items()))
        numeric = (values[0] - values[1]) / (2 * step)
        size = sum(abs(w * exact[k]).sum() for k, w in weights.items())
        assert abs(slope - numeric) <= 2e-5 * abs(slope) + 1e-9 * float(size) + 1e-9, (str(case), slope, numeric)


def _moved(spec, arguments, ways, step):
    moved = dict(arguments)
    for name in spec.contract.differentiated:
        if isinstance(arguments[name], list):
            moved[name] = [x + step * ways[f"{name} {k}"] for k, x in enumerate(arguments[name])]
        elif arguments[name] is not None:
            moved[name] = arguments[name] + step * ways[name]
    return moved


# ---------------------------------------------------------------------------------------------- it is complete


def test_each_op_has_a_spec():
    assert list(SPECS) == list(CONTRACTS) and all(name == spec.name for name, spec in SPECS.items())
    folders = {path.parent.name for path in Path(ops.__file__).parent.glob("*/__init__.py")}
    assert folders == set(SPECS)


@each_spec
def test_a_spec_is_complete(spec):
    optional = {"framed", "unread", "through", "wide_results"}
    for field in dataclasses.fields(spec):
        assert getattr(spec, field.name) or field.name in optional, field.name
    dtypes = {case.dtype for case in spec.cases}
    assert dtypes == set(cases.DTYPES) or spec.name == "compress" and dtypes == {torch.float32, torch.float64}
    for group in (spec.cases, spec.compiled, spec.traffic, spec.timed):
        names = [str(case) for case in group]
        assert len(set(names)) == len(names)
    if "lengths" in spec.contract.arguments:
        for group in (spec.cases, spec.compiled, spec.traffic):
            assert any(case.options.get("lengths") for case in group) or (spec.name, group) == ("pyramid", spec.traffic)
    native = [name for name in ("cuda", "triton") if name in backends._OPS[f"{spec.name}_forward"]]
    assert sorted(spec.launches) == sorted(native)
    known = {*spec.contract.arguments, *spec.contract.backward_arguments}
    assert set(spec.framed) | set(spec.unread) | set(spec.through.values()) <= known


@each_spec
def test_a_timed_case_leaves_the_cache(spec):
    for case in spec.timed:
        sized = spec.sized(case, 2**20)
        assert max(x.nbytes for x in tensors(spec.make(sized, "meta", "empty").values())) >= 2**20
        assert spec.sized(sized, 2**30) == sized


@each_spec
def test_bytes_of_a_run(spec):
    """What is read and written once, added up by hand."""
    run = Run(spec, spec.make(spec.cases[0]))
    run.forward(), run.backward()
    valid = spec.cases[0].options.get("lengths") is None
    whole = sum(x.nbytes for x in tensors([*run.arguments.values(), *run.results.values()]))
    assert run.bytes("forward") == whole if valid else run.bytes("forward") < whole
    needed = {k: x for k, x in run.backward_arguments().items() if k not in spec.unread}
    whole = sum(x.nbytes for x in tensors([*needed.values(), *run.gradients.values()]))
    assert run.bytes("backward") == whole if valid else run.bytes("backward") <= whole


# ---------------------------------------------------------------------------------------------- every kernel is reached


def _cuda_kernels():
    text = "\n".join(path.read_text() for path in sorted((ROOT / "csrc").rglob("*.cu*")))
    return set(re.findall(r"\b(\w+_kernel)\s*\(", text)), text


def test_each_cuda_kernel_belongs_to_a_spec():
    found, text = _cuda_kernels()
    launched = {name for spec in SPECS.values() for name in spec.launches.get("cuda", ())}
    assert found and found == launched
    assert len(re.findall(r"__global__", re.sub(r"//.*", "", text))) >= len(launched)


def test_each_triton_kernel_is_launched_by_a_spec():
    """Kernels by what the Spec's compiled cases launch; other jitted functions by who names them."""
    pytest.importorskip("triton")
    if backends.TRITON_INTERPRET:
        pytest.skip("the interpreter replaces what would be compiled")
    from triton import JITFunction

    from abckd_verify.machines import compiled_triton

    launched = {}
    for spec in SPECS.values():
        kernels = {launch[0] for case in spec.compiled for launch in compiled_triton.launches(spec, case)}
        assert {kernel.__name__ for kernel in kernels} == set(spec.launches["triton"]), spec.name
        launched |= {id(kernel): kernel for kernel in kernels}
    reached, waiting = dict(launched), list(launched.values())
    while waiting:
        kernel = waiting.pop()
        for name in set(re.findall(r"\w+", kernel.src)):
            value = kernel.fn.__globals__.get(name)
            if isinstance(value, JITFunction) and id(value) not in reached:
                reached[id(value)] = value
                waiting.append(value)
    package = Path(abckd_kernels.__file__).parent
    jitted = {}
    for module in compiled_triton.modules():
        assert package in Path(module.__file__).parents
        jitted |= {id(x): x for x in vars(module).values() if isinstance(x, JITFunction)}
    missing = [f"{jitted[key].__module__}.{jitted[key].__name__}" for key in jitted.keys() - reached.keys()]
    assert not missing
