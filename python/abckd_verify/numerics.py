"""An op against its Spec on any device: results and gradients, within the rounding of plain PyTorch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .exact import accuracy
from .spec import Case, Spec, tensors


def check(spec: Spec, case: Case, device: str | torch.device = "cpu") -> None:
    """The op on a case, by the backend in force. Raises AssertionError."""
    arguments = spec.make(case, device)
    outputs, leaves = differentiable(spec, arguments, op(spec))
    generator = torch.Generator().manual_seed(1234)
    upstream = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in outputs.values()]
    on_device = [g.to(device) for g in upstream]
    grads = torch.autograd.grad(list(outputs.values()), list(leaves.values()), on_device)

    on_cpu = {name: moved(value) for name, value in arguments.items()}
    condition, exact = spec.condition(on_cpu), values(spec, on_cpu)
    plain, plain_grads = _plain(spec, on_cpu, upstream, None)
    _, exact_grads = _plain(spec, on_cpu, upstream, torch.float64)
    for name, ours in outputs.items():
        if name not in exact:  # what passes through
            continue
        ours = ours.detach().cpu()
        if spec.wide_results:
            ours = ours.to(torch.promote_types(case.dtype, torch.float32))
        accuracy.assert_accurate(ours, exact[name], plain[name], name, condition)
    for (name, leaf), ours, expected, others in zip(leaves.items(), grads, exact_grads, plain_grads, strict=True):
        accuracy.assert_gradient(ours.cpu(), accuracy.float64(expected), others, f"gradient of {name}", condition)
        assert ours.dtype == leaf.dtype, f"gradient of {name}: {ours.dtype}, expected {leaf.dtype}"


def op(spec: Spec):
    """The op that autograd knows: of the contract's arguments to its results."""
    return getattr(torch.ops.abckd, spec.name).default


def differentiable(spec: Spec, arguments: dict, function) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """({name: result that has a gradient}, {name: leaf}); of lists "name 0", "name 1" and so on."""
    contract, given = spec.contract, dict(arguments)
    leaves: dict[str, Tensor] = {}
    for name in contract.differentiated:
        value = arguments[name]
        if value is not None:
            fresh = [x.detach().requires_grad_() for x in tensors([value])]
            given[name] = fresh if isinstance(value, list) else fresh[0]
            leaves |= _numbered(name, given[name])
    returned = function(*(given[name] for name in contract.arguments))
    returned = returned if len(contract.results) > 1 else [returned]
    outputs: dict[str, Tensor] = {}
    for name, value in zip(contract.results, returned, strict=True):
        if arguments.get(spec.through.get(name, ""), 1) is not None:
            outputs |= _numbered(name, value)
    return outputs, leaves


def values(spec: Spec, arguments: dict) -> dict[str, np.ndarray]:
    """The exact results, by name, without what passes through."""
    contract = spec.contract
    arrays = {name: _array(arguments[name]) for name in contract.arguments}
    names = [name for name in contract.results if name != contract.passing]
    found: dict[str, np.ndarray] = {}
    for name, value in zip(names, spec.exact(**arrays), strict=True):
        found |= _numbered(name, value)
    return found


def plain_op(spec: Spec):
    """`Spec.plain` as a function like `op`: what passes through comes first."""
    contract = spec.contract

    def function(*given):
        arguments = dict(zip(contract.arguments, given, strict=True))
        results = list(spec.plain(**arguments))
        if contract.passing:
            results.insert(0, [x * 1 for x in arguments[contract.passing]])
        return results if len(results) > 1 else results[0]

    return function


def _plain(spec, arguments, upstream, dtype):
    if dtype is not None:
        arguments = {name: moved(value, dtype) for name, value in arguments.items()}
    outputs, leaves = differentiable(spec, arguments, plain_op(spec))
    seeds = [g.to(x.dtype) for g, x in zip(upstream, outputs.values(), strict=True)]
    grads = torch.autograd.grad(list(outputs.values()), list(leaves.values()), seeds)
    return outputs, grads


def moved(value, dtype: torch.dtype | None = None):
    """A copy on the CPU, in `dtype` if it is of floating point."""
    if isinstance(value, list):
        return [moved(x, dtype) for x in value]
    if not isinstance(value, Tensor):
        return value
    return value.detach().to("cpu", dtype if value.is_floating_point() and dtype else value.dtype)


def _array(value):
    if isinstance(value, list):
        return [_array(x) for x in value]
    if not isinstance(value, Tensor):
        return value
    return accuracy.float64(value) if value.is_floating_point() else value.numpy()


def _numbered(name: str, value) -> dict:
    if isinstance(value, list | tuple):
        return {f"{name} {k}": x for k, x in enumerate(value)}
    return {name: value}
