"""What tests of whole kinds of faults need: every loss with every value of every option, and a device that isn't there.

`FORMS` holds the rows of all test files, and for every option with named values (a choice, or true and false) that no
row has a further row with it. The values come from the losses themselves: from the error about a value that can't be.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
import inspect
import re
import traceback
from pathlib import Path
from unittest import mock

import torch
from parity import HERE
from suite import Loss, as_list
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from abckd_kernels.losses import abc_loss, table

NO_VALUE = "no such value"
VALUES_ASKED_FOR = (DataDependentOutputException, DynamicOutputShapeException)
VARIANTS = ("plain", "all", "module")

# ---------------------------------------------------------------------------------------------- every option


def rows():
    """The rows of all test files."""
    for file in sorted(HERE.glob("test_*.py")):
        if file.stem != "test_faults":
            yield from getattr(importlib.import_module(file.stem), "LOSSES", [])


def forms() -> list[Loss]:
    """All rows, and the rows with options that none of them has."""
    found = list(rows())
    seen = {(subject(row), name, str(value)) for row in found for name, value in options_of(row).items()}
    for entry in table():
        mine = [row for row in found if subject(row) in (entry.function, entry.module)]
        for row in [next((row for row in mine if bool(row.module) is learned), None) for learned in (False, True)]:
            for name, value in alternatives(row) if row else ():
                if (subject(row), name, str(value)) not in seen:
                    found.append(with_option(row, name, value))
    layers = {"student": [(3, 6, 5), (2, 4, 3)], "teacher": [(4, 6, 5), (3, 9, 4), (5, 3, 5)]}
    mask = torch.tensor([[True, False, True], [True, True, False]])
    for options in ({"scores": "uniform", "mask": mask}, {"grid": (4, 3), "temperature": 0.5}):
        found.append(Loss("abc", abc_loss, None, **layers, options=options))
    return found


def subject(row: Loss):
    """The function, or the class, that a row is about."""
    return type(row.module()) if row.module else row.function


def options_of(row: Loss) -> dict:
    return construction(row)[2] if row.module else row.options


def construction(row: Loss) -> tuple[type, tuple, dict]:
    """(class, positional arguments, options) with which a row makes its module."""
    kind, calls = type(row.module()), []
    original = kind.__init__

    def recorded(self, *args, **kwargs):
        calls.append((args, kwargs))
        original(self, *args, **kwargs)

    kind.__init__ = recorded
    try:
        row.module()
    finally:
        kind.__init__ = original
    return kind, *calls[-1]


def with_option(row: Loss, name: str, value) -> Loss:
    """The row with an option; features that may be of any shape have one, which suits every option."""
    shapes = {} if row.layers or row.inputs else {"teacher": row.student}
    if not row.module:
        return dataclasses.replace(row, options=row.options | {name: value}, **shapes)
    kind, args, options = construction(row)

    def make():
        return kind(*args, **options | {name: value})

    return dataclasses.replace(row, name=f"{row.name}-{name}={value}", module=make)


def parameters_of(row: Loss) -> dict[str, inspect.Parameter]:
    """What the function takes, or the class: its own options, and those that it passes on to its function."""
    if not row.module:
        return dict(inspect.signature(row.function).parameters)
    kind = type(row.module())
    own = dict(inspect.signature(kind.__init__).parameters)
    return (dict(inspect.signature(kind.function).parameters) if hasattr(kind, "function") else {}) | own


def alternatives(row: Loss):
    """(option, value) of every option with named values, apart from the default."""
    for name, parameter in parameters_of(row).items():
        if isinstance(parameter.default, bool):
            yield name, not parameter.default
        elif isinstance(parameter.default, str):
            yield from ((name, value) for value in choices(row, name) if value != parameter.default)


def choices(row: Loss, name: str) -> list[str]:
    """What an option may be, from the error that names it."""
    changed = with_option(row, name, NO_VALUE)
    try:
        changed(*changed.features(changed.dtypes[0]))
    except (ValueError, KeyError) as error:
        return [x for x in re.findall(r"'([^']*)'", str(error).partition(", got ")[0]) if x != NO_VALUE]
    return []


def inputs(form: Loss, dtype: torch.dtype, batch: int = 4):
    """(student, teacher, further arguments) on the CPU."""
    student, teacher = form.features(dtype, batch)
    return student, teacher, form.arguments(student, teacher)


def mapped(change, values):
    """Nested values with `change` applied to every tensor."""
    return tree_map_only(Tensor, change, values)


# ---------------------------------------------------------------------------------------------- no device


class Crossings(TorchDispatchMode):
    """Notices what waits for a device: operations with tensors on both sides, and values that are asked for."""

    SYNCHRONISE = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "_unique2")

    def __init__(self):
        super().__init__()
        self.found: dict[str, None] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        try:
            result = func(*args, **kwargs)
        except VALUES_ASKED_FOR:
            self.note(func)
            raise
        if func is not torch.ops.prim.device.default:
            devices = {x.device.type for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)}
            asks = func.overloadpacket.__name__ in self.SYNCHRONISE and "cuda" in devices
            if len(devices) > 1 or asks:
                self.note(func)
        return result

    def note(self, func) -> None:
        places = [x for x in traceback.extract_stack() if "abckd_kernels" in Path(x.filename).parts]
        where = f" at {'/'.join(Path(places[-1].filename).parts[-2:])}:{places[-1].lineno}" if places else ""
        self.found[f"{func}{where}"] = None


def crossings(form: Loss, variant: str, backward: bool = True) -> list[str]:
    """Operations of forward and backward that wait for a GPU, or that it waits for. Needs no GPU."""
    dtype = form.dtypes[0]
    student, teacher, arguments = inputs(form, dtype)
    arguments = of_variant(form, student, arguments, variant)
    module = None
    if form.module:
        count = count_of_weights(form) if variant == "all" and "weights" in parameters_of(form) else None
        module = copy.deepcopy((with_option(form, "weights", [0.5] * count) if count else form).form(dtype))
    elif variant == "module":
        own = (*form.options, "weights")
        module = module_of(form)(**{name: arguments.pop(name) for name in own})
    with FakeTensorMode(), torch.set_grad_enabled(backward):
        student, teacher, arguments = mapped(on_fake_gpu, (student, teacher, arguments))
        if module is not None:
            to_fake_gpu(module)
        watch = Crossings()
        with watch, contextlib.suppress(*VALUES_ASKED_FOR), noted_materialization():
            value = (module or form.function)(student, teacher, **arguments)
            value = value[0] if isinstance(value, tuple) else value
            if backward:
                run_backward(value)
        return list(watch.found)


def has_variant(form: Loss, variant: str) -> bool:
    """Whether a loss may be called so: with nothing but its features; with padding, rows that don't count and weights,
    as far as it takes them; and as the module with weights of a function without learned parts.
    """
    weighted = "weights" in parameters_of(form) and count_of_weights(form) is not None
    if variant == "module":
        return not form.module and weighted and module_of(form) is not None
    return variant == "plain" or weighted or form.padded or (not form.module and form.takes("ignore"))


def module_of(form: Loss):
    """The class without learned parts that is the function of a form, or None."""
    kind = next((entry.module for entry in table() if entry.function is form.function), None)
    if kind is None or "test_module_is_the_function" in form.excused:
        return None
    named = [x for x in inspect.signature(kind).parameters.values() if x.kind != x.VAR_KEYWORD]
    return kind if all(x.default is not x.empty for x in named) else None


def of_variant(form: Loss, student, arguments: dict, variant: str) -> dict:
    """The arguments of a call of the variant."""
    if variant == "plain":
        return arguments
    given = dict(arguments)
    if form.padded:
        given["lengths"] = lengths(form, student)
    if not form.module and form.takes("ignore"):
        rows = as_list(student)[0][:, 0]
        given["ignore"] = torch.arange(rows.numel()).view(rows.shape) % 3 == 0
    if not form.module and "weights" in parameters_of(form) and (count := count_of_weights(form)):
        given["weights"] = [0.5] * count
    return given


def lengths(form: Loss, student) -> Tensor:
    """Of four samples, from all frames to one."""
    frames = max(form.frames(student))
    return torch.tensor([frames, frames // 2, frames * 2 // 3, 1])


def count_of_weights(form: Loss) -> int | None:
    """How many weights a loss takes, of the features that its row makes; None: none at all."""
    student, teacher, arguments = inputs(form, form.dtypes[0])
    for count in range(1, 4):
        weights = [0.5] * count
        try:
            weighted = with_option(form, "weights", weights) if form.module else form
            given = {} if form.module else {"weights": weights}
            weighted.form(form.dtypes[0])(student, teacher, **arguments | given)
            return count
        except ValueError as error:
            assert "weights" in str(error), error
    return None


@contextlib.contextmanager
def noted_materialization():
    """Nodes know whether gradients that do not arrive become zeros, which autograd does not tell."""

    def noted(context, value):
        context.materialize_grads = context.materializes = value

    with mock.patch.object(torch.autograd.function.FunctionCtx, "set_materialize_grads", noted):
        yield


def on_fake_gpu(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda").requires_grad_(x.requires_grad)


def to_fake_gpu(module: nn.Module) -> None:
    """Parameters and buffers as if the module had been made there."""
    for part in module.modules():
        for name, x in part._parameters.items():
            if x is not None:
                part._parameters[name] = nn.Parameter(on_fake_gpu(x), x.requires_grad)
        for name, x in part._buffers.items():
            if x is not None:
                part._buffers[name] = on_fake_gpu(x)


def run_backward(value: Tensor) -> None:
    """What autograd's engine does, which insists on streams of a device that is there: every node once, in order."""
    waiting: dict = {}
    order, stack = [], [(value.grad_fn, iter(value.grad_fn.next_functions))]
    seen = {value.grad_fn}
    while stack:
        node, edges = stack[-1]
        for following, _ in edges:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append((following, iter(following.next_functions)))
                break
        else:
            order.append(node)
            stack.pop()
    waiting[value.grad_fn] = {0: torch.ones_like(value)}
    for node in reversed(order):
        grads = waiting.pop(node, None)
        if grads is None or type(node).__name__ == "AccumulateGrad":
            continue
        known = node._input_metadata
        grads = [grads.get(i) for i in range(len(known))]
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            if getattr(node, "materializes", True):
                grads = [
                    torch.zeros(tuple(m.shape), dtype=m.dtype, device=m.device) if x is None else x
                    for x, m in zip(grads, known, strict=True)
                ]
            results = node.apply(*grads)
        else:
            results = node(*grads)
        results = list(results) if isinstance(results, tuple) else [results]
        edges = list(node.next_functions)
        if isinstance(node, torch.autograd.function.BackwardCFunction):  # its edges are those of tensors alone
            results = [x for x, wanted in zip(results, node.needs_input_grad, strict=False) if wanted]
            edges = [edge for edge in edges if edge[0] is not None]
        for result, (following, index) in zip(results, edges, strict=True):
            if result is None or following is None:
                continue
            like = following._input_metadata[index]
            result = result.sum_to_size(tuple(like.shape)).to(like.dtype)
            into = waiting.setdefault(following, {})
            into[index] = result if index not in into else into[index] + result
