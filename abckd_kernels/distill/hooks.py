"""What is wanted of a network's layers, taken by hooks that are there during one forward pass.

Names mean what they mean when a step runs, so a layer may be replaced, wrapped or moved between steps, and nothing of
ours stays in a network: not in copies, pickles, TorchScript or exports. The hooks are put in by setting the attribute
that holds a module's hooks, which torch.compile can trace.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import tap
from .causes import why_not
from .checkpointing import Recomputed, in_reentrant_region, kept_out
from .layers import Layer, element_of, find, replaced
from .orders import Sizes, sizes_of
from .reading import check_tappable, is_constant, read
from .wanted import Taken, Wanted


class Observed:
    """A network's layers under observation. One thread at a time may call `take`."""

    def __init__(self, wanted: Sequence[Wanted]):
        self.wanted = list(wanted)
        self.shapes: dict[int, tuple[int, ...]] = {}  # as they were read last, for messages
        self._notes = [_Notes(one.layer) for one in wanted]
        groups: dict[tuple[str, bool], list[int]] = {}
        for index, one in enumerate(self.wanted):
            if one.layer.name:
                groups.setdefault((one.layer.name, one.layer.input), []).append(index)
        self._hooks = [_Hook(self, group) for group in groups.values()]
        self._of_network = [index for index, one in enumerate(self.wanted) if not one.layer.name]
        self._pass: _Pass | None = None

    def check(self, network: Any) -> None:
        """Raise ValueError for a name that the network has no layer of."""
        for hook in self._hooks:
            hook.find(network)

    def take(
        self, network: Callable, inputs: Sequence = (), keywords: Mapping[str, Any] | None = None,
        padding: Mapping[str, Any] | None = None,
    ) -> Taken:  # fmt: skip
        """Run the network and take what is wanted of it.

        padding    `lengths` and `padded_length` for taps, or nothing.

        Raises ValueError and RuntimeError that name the layer and the cause.
        """
        if self._pass is not None:
            raise RuntimeError("this Distiller is already running; one thread at a time may call it")
        modules = [hook.find(network) for hook in self._hooks]
        running = self._pass = _Pass(network, [[] for _ in self.wanted], dict(padding or {}), torch.is_grad_enabled())
        put: list[tuple[_Hook, nn.Module, Any]] = []
        try:
            for hook, module in zip(self._hooks, modules, strict=True):
                put.append((hook, module, hook.put(module)))
            self._look_at(network, modules)
            output = network(*inputs, **(keywords or {}))
            for index in self._of_network:
                output = self.collect(index, output, network, None)
            for index, values in enumerate(running.values):
                if not values:
                    raise ValueError(f"{self.wanted[index].where} {self._missing(running, index)}")
            self._check_versions(running)
        except RuntimeError as error:
            if "inplace" in str(error) and "modified" in str(error):
                self._notes_of_copies(True)
                names = ", ".join(one.where for one in self.wanted)
                raise RuntimeError(
                    f"{names}: a layer behind one of these began to change its output in place, which the loss still "
                    "needs; the next step will copy it"
                ) from error
            raise
        finally:
            for hook, module, before in reversed(put):
                hook.remove(module, before)
            self._pass = None
        joined = [x for x in _tensors(output) if x.requires_grad] if running.recomputed else []
        return Taken(output, running.values, running.packed, joined)

    def _look_at(self, network: Any, modules: Sequence[nn.Module]) -> None:
        """What the network tells of the layers whose order of axes is not known yet."""
        hooked = zip(self._hooks, modules, strict=True)
        of_hooks = [(index, module) for hook, module in hooked for index in hook.indices]
        for index, module in [*of_hooks, *((index, network) for index in self._of_network)]:
            if self._notes[index].order is None:
                self._notes[index].sizes = sizes_of(network, module)

    def collect(self, index: int, output: Any, module: Any, hook: _Hook | None) -> Any:
        """Take what is wanted of what a layer returns, or is given; what the network goes on with."""
        running, (layer, _, where) = self._pass, self.wanted[index]
        if running is None or (isinstance(layer.call, int) and running.count(index) != layer.call):
            return output
        if running.values[index] and layer.call is None:
            raise ValueError(
                f"{where} ran more than once in a forward pass; name one of its calls, as in '{layer.name}@0', or all "
                f"of them as features of their own, '{layer.name}@all', or a layer that runs once"
            )
        if torch.compiler.is_compiling():
            passed_on, value = self._taken(running, index, output)
        elif running.gradients and not torch.is_grad_enabled():
            passed_on, value = self._taken_without_graph(running, index, output, module, hook)
        else:
            with kept_out():
                passed_on, value = self._taken(running, index, output)
        running.values[index].append(value)
        return passed_on

    def _taken(self, running: _Pass, index: int, output: Any) -> tuple[Any, Any]:
        (layer, options, where), notes = self.wanted[index], self._notes[index]
        found = element_of(output, layer.path, where)
        one, notes.order = read(found, layer, notes.order, notes.sizes, where)
        running.packed = one.padding or running.packed
        x, passed_on = one.feature, found
        value: Any = x
        if not torch.compiler.is_compiling():
            self.shapes[index] = tuple(x.shape)
            self._check_connected(running, index, x)
        if options is not None:
            check_tappable(x, where)
            tapped = tap(x, **options, **(running.packed or running.padding))
            value = tapped.map, tapped.mean
            if one.order is not None:
                passed_on = one.back(tapped.feature)
            self._warn_of_constant(index, tapped.map)
        if not isinstance(found, Tensor) or (options is not None and not (torch.is_grad_enabled() and x.requires_grad)):
            return output, value  # nothing that the network does afterwards changes what the loss has
        if notes.copies is not False:
            passed_on = passed_on.clone()
        if not (torch.compiler.is_compiling() or passed_on.is_inference()):
            running.passed_on.append((index, passed_on, passed_on._version))
        return replaced(output, layer.path, passed_on), value

    def _taken_without_graph(
        self, running: _Pass, index: int, output: Any, module: Any, hook: _Hook | None
    ) -> tuple[Any, Any]:
        """A layer that runs under no_grad in a step with gradients: it will run again, or nothing can reach it."""
        layer, options, where = self.wanted[index]
        if not in_reentrant_region():
            raise RuntimeError(
                f"{where} runs under torch.no_grad() within the network, so the loss has no gradient there (activation "
                "checkpointing other than PyTorch's does so, too); name a layer that runs with gradients"
            )
        if layer.call is not None or hook is None:
            raise RuntimeError(
                f"{where}: the calls of a layer can't be told apart in reentrant activation checkpointing; checkpoint "
                "with use_reentrant=False"
            )
        passed_on, value = self._taken(running, index, output)

        def again(recomputed: Recomputed, given: Any) -> Any:
            once_more = _Pass(running.network, [], running.padding, gradients=True)
            with_tap, values = self._taken(once_more, index, given)
            found = element_of(with_tap, layer.path, where)
            if not found.requires_grad:  # of a region within a region, which has yet to run
                return None
            values = [values] if options is None else list(values)
            return replaced(with_tap, layer.path, recomputed.inject(found, values))

        one = _Again(hook.of_input, again)
        recomputed = Recomputed(lambda me: one.put(module, me), lambda: one.remove(module), where)
        leaves = recomputed.leaves([value] if options is None else list(value))
        running.recomputed = True
        return passed_on, leaves[0] if options is None else tuple(leaves)

    def _check_connected(self, running: _Pass, index: int, x: Tensor) -> None:
        notes = self._notes[index]
        if running.gradients and torch.is_grad_enabled() and not (x.requires_grad or notes.unconnected):
            notes.unconnected = True
            if isinstance(running.network, nn.Module) and any(p.requires_grad for p in running.network.parameters()):
                warnings.warn(
                    f"{self.wanted[index].where}: no gradient reaches what it gives (it is detached, or all parameters "
                    "before it are frozen), so the loss cannot change it",
                    stacklevel=2,
                )

    def _warn_of_constant(self, index: int, map: Tensor) -> None:
        (layer, _, where), notes = self.wanted[index], self._notes[index]
        if notes.map_seen or torch.compiler.is_compiling() or type(map) is not Tensor or map.is_meta:
            return
        if map.is_cuda and torch.cuda.is_current_stream_capturing():
            return
        notes.map_seen = True
        if is_constant(map):
            warnings.warn(
                f"{where}: its attention map has the same value at all positions, so it teaches nothing; after a layer "
                f"normalisation that is so with power=2: use power=1, or name a layer before it ('{layer.name}@in')",
                stacklevel=2,
            )

    def _check_versions(self, running: _Pass) -> None:
        """Whether a layer behind changed what was passed on: then it goes on getting a copy, else it needs none."""
        for index, passed_on, version in running.passed_on:
            notes, changed = self._notes[index], passed_on._version != version
            if changed and notes.copies is False:
                raise RuntimeError("modified inplace")
            notes.copies = changed or bool(notes.copies and self.wanted[index].layer.call == "all")

    def _missing(self, running: _Pass, index: int) -> str:
        call, ran = self.wanted[index].layer.call, running.counts.get(index)
        return f"ran {ran} times only, so it has no call {call}" if ran else why_not(
            self.wanted[index].layer.name, running.network
        )  # fmt: skip

    def _notes_of_copies(self, copies: bool) -> None:
        for notes in self._notes:
            notes.copies = copies

class _Notes:
    """What was found out about a layer: the order of its axes, whether what follows changes it in place, ..."""

    def __init__(self, layer: Layer) -> None:
        self.order = "" if layer.order or layer.transform else None
        self.sizes = Sizes()
        self.copies: bool | None = None
        self.map_seen = self.unconnected = False


class _Pass:
    """A forward pass."""

    def __init__(self, network: Any, values: list[list[Any]], padding: dict[str, Any], gradients: bool):
        self.network, self.values, self.padding, self.gradients = network, values, padding, gradients
        self.packed: dict[str, Any] = {}
        self.passed_on: list[tuple[int, Tensor, int]] = []
        self.counts: dict[int, int] = {}
        self.recomputed = False

    def count(self, index: int) -> int:
        """How often the layer ran before."""
        before = self.counts.get(index, 0)
        self.counts[index] = before + 1
        return before


_keys = itertools.count(1)


class _Hook:
    """The hook of one layer. It is the same object in every pass, which code that was compiled with it relies on."""

    def __init__(self, observed: Observed, indices: list[int]):
        self._observed, self.indices = observed, indices
        layer = observed.wanted[indices[0]].layer
        self.of_input, self._key = layer.input, f"abckd_kernels.{next(_keys)}"

    def find(self, network: Any) -> nn.Module:
        wanted = self._observed.wanted[self.indices[0]]
        return find(network, wanted.layer, wanted.where)

    def put(self, module: nn.Module) -> Any:
        return put(module, self._key, self, self.of_input)

    def remove(self, module: nn.Module, before: Any) -> None:
        remove(module, self._key, before, self.of_input)

    def __call__(self, module: nn.Module, inputs: tuple, output: Any) -> Any:
        if getattr(module, "_is_replica", False):
            raise RuntimeError(
                f"{self._observed.wanted[self.indices[0]].where} runs in replicas of nn.DataParallel, whose features "
                "a Distiller cannot collect; use DistributedDataParallel around the Distiller"
            )
        if self._observed._pass is None:
            return None

        def collect(given: Any) -> Any:
            for index in self.indices:
                given = self._observed.collect(index, given, module, self)
            return given

        return _of_arguments(inputs, output, collect) if self.of_input else collect(output)


class _Again:
    """A hook that `Recomputed` puts on a layer until it has run again."""

    def __init__(self, of_input: bool, again: Callable):
        self._of_input, self._again, self._key = of_input, again, f"abckd_kernels.{next(_keys)}"
        self._recomputed: Recomputed | None = None

    def put(self, module: nn.Module, recomputed: Recomputed) -> None:
        self._recomputed = recomputed
        put(module, self._key, self, self._of_input)

    def remove(self, module: nn.Module) -> None:
        remove(module, self._key, None, self._of_input)

    def __call__(self, module: nn.Module, inputs: tuple, output: Any) -> Any:
        if not torch.is_grad_enabled():
            return None
        if self._of_input:
            return _of_arguments(inputs, output, lambda given: self._again(self._recomputed, given))
        return self._again(self._recomputed, output)


def _attributes(of_input: bool) -> tuple[str, ...]:
    return ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs") if of_input else ("_forward_hooks",)


def put(module: nn.Module, key: str, hook: Callable, of_input: bool) -> Any:
    """Put a hook on a module; what `remove` needs to take it off again."""
    before = [getattr(module, name) for name in _attributes(of_input)]
    for name, hooks, value in zip(_attributes(of_input), before, (hook, True), strict=False):
        if torch.compiler.is_compiling():  # an item cannot be set there, an attribute can
            setattr(module, name, {**hooks, key: value})
        else:
            hooks[key] = value
    return before


def remove(module: nn.Module, key: str, before: Any, of_input: bool) -> None:
    """Take a hook off."""
    if torch.compiler.is_compiling():
        for name, hooks in zip(_attributes(of_input), before, strict=True):
            setattr(module, name, hooks)
    else:
        for name in _attributes(of_input):
            getattr(module, name).pop(key, None)


def _of_arguments(args: tuple, keywords: dict, collect: Callable) -> tuple[tuple, dict]:
    """A layer's arguments as one dict, positions and names its keys, collected from, and as arguments again."""
    given = collect({**{str(k): value for k, value in enumerate(args)}, **keywords})
    if given is None:
        return args, keywords
    return tuple(given[str(k)] for k in range(len(args))), {name: given[name] for name in keywords}


def _tensors(output: Any) -> list[Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(output) if isinstance(x, Tensor)]
