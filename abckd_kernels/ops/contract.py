"""contract: an op is two schemas, and all that autograd needs follows from the names in them.

    forward    (arguments) -> (results)                 runs as the kernel `<op>_forward`
    backward   (arguments) -> (gradients)               runs as the kernel `<op>_backward`

Backward takes, by name,

    <argument>           what forward was given: a tensor is saved, anything else is kept as it is
    <result>             what forward returned
    grad_<result>        the gradient of a result
    grad_<argument>      of an argument that the op also returns, unchanged, before its results (tap's features);
                         backward is called for the items that another gradient reaches, too, the rest have that one
    <argument>_sizes     sizes of a list's tensors, without the batch: where shapes suffice, no tensor is kept
    needed               bool[], one per gradient: whether anybody asks for it; those that nobody asks for may be empty

and gives each gradient under the name of its argument. Of the arguments in a list, only those that need a gradient are
saved. A gradient that does not arrive is zero, or None where its type is optional. An argument `gradients` of forward
says whether a backward may follow; callers of the op do not see it.

The op itself, `abckd::<op>`, returns the results that have a gradient; the others are for backward. It is composite:
its kernel picks the backend (`backends.choose`, when forward and when backward run), records the derivative and calls
`abckd::<op>_forward`, which is what torch.compile sees. csrc/torch/autograd.cpp is that kernel; `composite` below does
the same in Python, where there was no compiler.

A gradient cannot be differentiated again, and there are no forward-mode derivatives: both are errors. What refuses is
connected to all that the gradient depends on, so that no derivative of it passes by in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import backends


def op(
    name: str,
    *,
    forward: str,
    backward: str,
    forward_shapes: Callable,
    backward_shapes: Callable,
    native: Sequence[str] = (),
) -> Callable:
    """Register the op in the dispatcher; the function to call.

    name              the op's package, whose last part is the op's name; reference.py and triton.py in it hold the
                      functions `forward` and `backward`.
    forward           schema "(Tensor x, ...) -> (Tensor name, ...)", results with names.
    backward          schema, in the names that the top of this module explains.
    forward_shapes    as forward, of tensors without data: empty results.
    backward_shapes   the same of backward.
    native            devices for which the extension has kernels, "cpu" and "cuda".
    """
    op_name = name.rpartition(".")[2]
    for direction, signature, shapes in (
        ("forward", forward, forward_shapes), ("backward", backward, backward_shapes)
    ):  # fmt: skip
        backends.define(f"{op_name}_{direction}", signature, folder=name, fake=shapes, native=tuple(native))
    contract = CONTRACTS[op_name] = Contract(op_name, forward, backward)
    return backends.compose(op_name, contract.signature, lambda: composite(contract))


class Contract:
    """The two schemas of an op, read."""

    def __init__(self, name: str, forward: str, backward: str):
        self.name = name
        takes, makes = (_fields(part) for part in forward.split(" -> "))
        wants, gives = (_fields(part) for part in backward.split(" -> "))
        self.forward_arguments = list(takes)
        self.forward_results = list(makes)
        self.arguments = [argument for argument in takes if argument != "gradients"]
        self.backward_arguments = list(wants)
        self.differentiated = list(gives)
        graded = [argument.removeprefix("grad_") for argument in wants if argument.startswith("grad_")]
        passing = [argument for argument in graded if argument not in makes]
        self.passing = passing[0] if passing else None
        self.results = [*passing, *(result for result in makes if result in graded)]
        self.materialize = all(wants[f"grad_{result}"] == "Tensor" for result in self.results)
        types = takes | makes
        returned = ", ".join(f"{types[result]} {result}" for result in self.results)
        self.signature = f"({', '.join(f'{takes[x]} {x}' for x in self.arguments)}) -> ({returned})"


CONTRACTS: dict[str, Contract] = {}  # by name of the op


def _fields(part: str) -> dict[str, str]:
    """{name: type} of one side of a schema."""
    fields = (field.rsplit(" ", 1) for field in part.strip().strip("()").split(", "))
    return {name: kind for kind, name in fields}


def connect_refusal(gradient: Tensor, *depends_on: Tensor | None) -> Tensor:
    """`gradient`, made an error to differentiate with respect to any of the tensors that it depends on.

    For the backward of an autograd.Function whose formula is not differentiable: autograd would otherwise let the graph
    end there, and a derivative of the gradient would lack that part in silence.
    """
    connected = [x for x in depends_on if x is not None and x.requires_grad]
    return _Refuse.apply(gradient.detach(), *connected) if torch.is_grad_enabled() and connected else gradient


class _Refuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gradient, *connected):
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError("second derivatives of abckd_kernels' ops don't exist")


class _Anchor(torch.autograd.Function):
    """An empty tensor that hangs on `x` in the graph: for a refusal to be connected to, without keeping `x`."""

    @staticmethod
    def forward(ctx, x):
        return x.new_empty(0)

    @staticmethod
    def backward(ctx, grad):
        return None


# ------------------------------------------------------------------------------------- the composite kernel in Python


class _Call(NamedTuple):
    """One call: the op's arguments by name, and where each one's tensors stand among all of them."""

    contract: Contract
    arguments: dict
    places: dict[str, range]


def composite(contract: Contract) -> Callable:
    """The op in Python, differentiable."""

    def kernel(*values: object):
        arguments = dict(zip(contract.arguments, values, strict=True))
        tensors: list[Tensor] = []
        places = {}
        for name, value in arguments.items():
            items = _tensors(value)
            places[name] = range(len(tensors), len(tensors) + len(items))
            tensors += items
        if torch.autograd.forward_ad._current_level >= 0:
            if any(torch.autograd.forward_ad.unpack_dual(x).tangent is not None for x in tensors):
                raise RuntimeError("forward-mode derivatives of abckd_kernels' ops don't exist")
        call = _Call(contract, arguments, places)
        if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
            anchors = [_Anchor.apply(x) for x in tensors if x.requires_grad]
            kinds: list[int | None] = []  # of the results: the length of a list, None of a tensor
            flat = iter(_Derived.apply(call, kinds, len(tensors), *tensors, *anchors))
            results = [next(flat) if kind is None else [next(flat) for _ in range(kind)] for kind in kinds]
        else:
            results = _public(call, _run_forward(call, tensors, gradients=False))
        return results[0] if len(results) == 1 else tuple(results)

    return kernel


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [x for x in value if isinstance(x, Tensor)] if isinstance(value, list | tuple) else []


def _run_forward(call: _Call, tensors: Sequence[Tensor], gradients: bool) -> dict:
    """What the forward kernel returns, by name."""
    contract = call.contract
    given = call.arguments | {"gradients": gradients}
    kernel = backends.kernel(f"{contract.name}_forward", tensors[0].device)
    with torch._C._AutoDispatchBelowADInplaceOrView():
        results = kernel(*(given[name] for name in contract.forward_arguments))
    return dict(zip(contract.forward_results, results if len(contract.forward_results) > 1 else [results], strict=True))


def _public(call: _Call, results: dict) -> list:
    return [(call.arguments | results)[name] for name in call.contract.results]


class _Derived(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, kinds, count, *tensors_and_anchors):
        contract, (tensors, anchors) = call.contract, (tensors_and_anchors[:count], tensors_and_anchors[count:])
        results = _run_forward(call, tensors, gradients=True)
        # Inputs that pass through must be returned as autograd knows them here.
        mine = {contract.passing: [tensors[k] for k in call.places[contract.passing]]} if contract.passing else {}
        flat = []
        for value in _public(call._replace(arguments=call.arguments | mine), results):
            kinds.append(len(value) if isinstance(value, list | tuple) else None)
            flat += _tensors(value)
        ctx.set_materialize_grads(contract.materialize)
        ctx.contract, ctx.places, ctx.kinds, ctx.count = contract, call.places, kinds, count
        ctx.device = tensors[0].device
        saved, ctx.kept = [], {}
        for name in contract.backward_arguments:
            if name in call.arguments and _tensors(call.arguments[name]):
                items = [tensors[k] for k in call.places[name]]
                if name in contract.differentiated and isinstance(call.arguments[name], list | tuple):
                    items = [x if x.requires_grad else None for x in items]
            elif name in results:
                items = _tensors(results[name])
            elif name.endswith("_sizes"):
                ctx.kept[name] = [n for x in call.arguments[name.removesuffix("_sizes")] for n in x.shape[1:]]
                continue
            else:
                ctx.kept[name] = call.arguments.get(name)
                continue
            many = isinstance((call.arguments | results)[name], list | tuple)
            ctx.kept[name] = _Saved(range(len(saved), len(saved) + len(items)), many)
            saved += items
        ctx.anchors = range(len(saved), len(saved) + len(anchors))
        ctx.save_for_backward(*saved, *anchors)
        return tuple(flat)

    @staticmethod
    def backward(ctx, *grads):
        saved = ctx.saved_tensors
        with torch.no_grad():
            results = _first_derivative(ctx, grads, saved)
        depends_on = [*(saved[k] for k in ctx.anchors), *grads]
        results = [
            x if x is None or any(x is grad for grad in grads) else connect_refusal(x, *depends_on) for x in results
        ]
        return None, None, None, *results, *[None] * len(ctx.anchors)


class _Saved(NamedTuple):
    places: range
    many: bool


def _first_derivative(ctx, grads, saved) -> list[Tensor | None]:
    """The gradients of all tensors that the op was given."""
    contract = ctx.contract
    needed = ctx.needs_input_grad[3 : 3 + ctx.count]
    gradients: list[Tensor | None] = [None] * ctx.count
    if all(grad is None for grad in grads):
        return gradients
    flat = iter(grads)
    by_result = {
        name: next(flat) if kind is None else [next(flat) for _ in range(kind)]
        for name, kind in zip(contract.results, ctx.kinds, strict=True)
    }
    reached: list[int] = []  # the items that pass through for which backward is called
    if contract.passing:
        own, *others = by_result.values()
        places = ctx.places[contract.passing]
        touched = [any(items[k] is not None for items in others if items) for k in range(len(places))]
        reached = [k for k, place in enumerate(places) if needed[place] and touched[k]]
        for k, place in enumerate(places):
            if needed[place] and not touched[k]:
                gradients[place] = own[k]
        if not reached:
            return gradients

    def value(name: str):
        if name == "needed":
            return [any(needed[k] for k in ctx.places[argument]) for argument in contract.differentiated]
        if name.startswith("grad_"):
            grad = by_result[name.removeprefix("grad_")]
            return [grad[k] if grad else None for k in reached] if contract.passing else grad
        kept = ctx.kept[name]
        if not isinstance(kept, _Saved):
            return kept
        items = [saved[k] for k in kept.places]
        if name == contract.passing:
            items = [items[k] for k in reached]
        return items if kept.many else items[0]

    kernel = backends.kernel(f"{contract.name}_backward", ctx.device)
    with torch._C._AutoDispatchBelowADInplaceOrView():
        fresh = kernel(*map(value, contract.backward_arguments))
    for name, result in zip(
        contract.differentiated, fresh if len(contract.differentiated) > 1 else [fresh], strict=True
    ):
        places = ctx.places[name]
        if name == contract.passing:
            places = [places[k] for k in reached]
        for place, grad in zip(places, _tensors(result), strict=False):
            if needed[place]:
                gradients[place] = grad
    return gradients
