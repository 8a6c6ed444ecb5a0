"""Distiller: brings a loss over feature maps into any training loop, by hooks on named layers."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .cache.reading import Examples, Rows, TeacherCache
from .ops import tap
from .ops.shapes import check_feature


class DistillerOutput(NamedTuple):
    """student, teacher: what the networks returned. loss: scalar. attention: (B, n, m) or None."""

    student: Any
    teacher: Any
    loss: Tensor
    attention: Tensor | None


class Distiller(nn.Module):
    """A student and its frozen teacher, with a knowledge-distillation loss between their named layers.

    student, teacher: any modules that take the same inputs; in place of the teacher a `TeacherCache`, with which no
    teacher runs: `distiller(x, examples=positions)`. student_layers, teacher_layers: dotted module names as in
    `named_modules()`; "name:1" or "name:key" chooses one element of a layer that returns a tuple, list or dict. The
    chosen tensors must be features (B, C, *spatial). loss: any loss of this library over features, or any callable
    loss(student_features, teacher_features).

    `distiller(*inputs)` runs the teacher (eval mode, no gradients), then the student, and returns DistillerOutput. A
    loss with `tap_options` and `from_taps` (`ABCLoss`, `ATLoss`, `AFDLoss`) needs no feature: forward hooks reduce each
    one to its attention map where it arises, so that the teacher's can be freed at once, and the student's gradient is
    added in the backward pass that already reads the feature. Any other loss gets the features.

    Layers that give (B, T, C), as recurrent ones do, are read as (B, C, T): name a layer behind the transposition. No
    layer behind a named one may change its output in place: that is an error, since the loss would read what it became.
    Activation checkpointing must not wrap a named layer.

    The teacher is set to requires_grad=False and stays in eval mode. Train `[p for p in distiller.parameters() if
    p.requires_grad]`: the student's and the loss's. For DistributedDataParallel wrap the distiller. It adds nothing
    to the student but hooks, which do nothing outside `distiller(...)`; `remove_hooks()` (or leaving a `with` block)
    takes them off. Copies and pickles of a network carry none. One thread at a time may call a distiller.

    Raises ValueError for a layer name that does not exist, with near matches, and when a forward pass runs a named
    layer not once, or finds no feature in what it returns.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | TeacherCache,
        student_layers: Sequence[str],
        teacher_layers: Sequence[str],
        loss: Callable[..., Tensor],
    ):
        super().__init__()
        self.student, self.teacher = student, teacher
        self.loss: Any = loss  # a function, or a module that may have from_taps
        self._tap_options = getattr(loss, "tap_options", None)
        self._taught = teacher.bound(teacher_layers, self._tap_options) if isinstance(teacher, TeacherCache) else None
        if isinstance(teacher, nn.Module):
            teacher.requires_grad_(False).eval()
        self._padding: dict[str, Any] = {}
        networks = {"student_layers": (student, student_layers)}
        if isinstance(teacher, nn.Module):
            networks["teacher_layers"] = (teacher, teacher_layers)
        self._collectors = [_Collector(*pair, argument, self._take) for argument, pair in networks.items()]
        for collector in self._collectors:  # only now: a wrong name must not leave hooks behind
            collector.attach()

    def forward(
        self,
        *inputs,
        lengths: Tensor | None = None,
        padded_length: int | None = None,
        examples: Examples | Rows | None = None,
        **keywords,
    ) -> DistillerOutput:
        """Run both networks on the same inputs.

        lengths: (B,) integers, the valid part of each padded item, out of padded_length (for a waveform both in
        samples); needed together. They are for the loss.
        examples: of a `TeacherCache`, and needed there: positions (B,) of the inputs in its data set, or rows of it.
        All other arguments go to both networks.
        """
        if (lengths is None) != (padded_length is None):
            raise ValueError("lengths and padded_length: give both or neither")
        self._padding = {} if lengths is None else {"lengths": lengths, "padded_length": padded_length}
        if (examples is None) != (self._taught is None):
            raise ValueError("examples: expected positions in the data set exactly if the teacher is a TeacherCache")
        of_student, *of_teacher = self._collectors
        if self._taught is not None and examples is not None:
            teacher_output, teacher_layers = self._taught.run(examples, inputs, self._padding)
        else:
            with torch.no_grad():
                teacher_output, teacher_layers = of_teacher[0].run(*inputs, **keywords)
        student_output, student_layers = of_student.run(*inputs, **keywords)
        if self._tap_options is None:
            loss, attention = self.loss(student_layers, teacher_layers, **self._padding), None
        else:
            maps_and_means = (
                [list(part) for part in zip(*layers, strict=True)] for layers in (student_layers, teacher_layers)
            )
            loss, attention = self.loss.from_taps(*maps_and_means, **self._padding)
        return DistillerOutput(student_output, teacher_output, loss, attention)

    def train(self, mode: bool = True) -> Distiller:
        """As nn.Module.train; the teacher stays in eval mode."""
        super().train(mode)
        if isinstance(self.teacher, nn.Module):
            self.teacher.eval()
        return self

    def remove_hooks(self) -> None:
        """Take the hooks off both networks. The distiller can't be called afterwards."""
        for collector in self._collectors:
            collector.remove()

    def __enter__(self) -> Distiller:
        return self

    def __exit__(self, *exception) -> None:
        self.remove_hooks()

    def _take(self, feature: Tensor) -> tuple[Tensor, Any]:
        """The tensor to pass on in the network, and what the loss gets of it."""
        if self._tap_options is None:
            return feature, feature
        tapped = tap(feature, **self._tap_options, **self._padding)
        return tapped.feature, (tapped.map, tapped.mean)


_CHANGED_IN_PLACE = (
    "a layer behind a named one changes its output in place (nn.ReLU(inplace=True), say), which the loss still needs; "
    "set inplace=False, or name that layer instead"
)


class _Hook:
    """The forward hook of one layer. A copy of the distiller hooks its own networks; other copies hook nothing."""

    def __init__(self, collector: _Collector | None, index: int):
        self._collector, self._index = collector, index

    def __call__(self, module: nn.Module, inputs: tuple, output: Any) -> Any:
        return None if self._collector is None else self._collector.collect(self._index, output)

    def __deepcopy__(self, memo: dict) -> _Hook:
        with_distiller = self._collector is not None and id(self._collector.owner) in memo
        return _Hook(copy.deepcopy(self._collector, memo) if with_distiller else None, self._index)

    def __reduce__(self) -> tuple:
        return _Hook, (None, self._index)


class _Collector:
    """Forward hooks on the named layers of one network; `run` returns what `take` took from each, in their order."""

    def __init__(self, network: nn.Module, layers: Sequence[str], argument: str, take: Callable):
        if isinstance(layers, str) or not layers:
            raise ValueError(f"{argument}: expected a non-empty list of layer names, got {layers!r}")
        self._network, self._layers, self._argument, self._take = network, list(layers), argument, take
        self._taken: dict[int, Any] | None = None  # a dict while `run` runs
        self._versions: dict[int, tuple[Tensor, int]] = {}  # of features that the loss will read
        modules = dict(network.named_modules())
        self._modules = [self._find(modules, index) for index in range(len(layers))]
        self._handles: list[Any] = []
        self._attached = False  # not bool(_handles): torch.compile can't trace handles

    @property
    def owner(self) -> Distiller:
        return self._take.__self__  # type: ignore[attr-defined]  # a bound method

    def attach(self) -> None:
        self._handles = [module.register_forward_hook(_Hook(self, i)) for i, module in enumerate(self._modules)]
        self._attached = True

    def run(self, *inputs, **keywords) -> tuple[Any, list[Any]]:
        if not self._attached:
            raise RuntimeError("this Distiller's hooks were removed; make a new one")
        if self._taken is not None:
            raise RuntimeError("this Distiller is already running; one thread at a time may call it")
        self._taken, self._versions = {}, {}
        try:
            output = self._network(*inputs, **keywords)
            missing = [index for index in range(len(self._layers)) if index not in self._taken]
            if missing:
                raise ValueError(f"{self._at(missing[0])} did not run in the forward pass")
            for index, (feature, version) in self._versions.items():
                if feature._version != version:
                    raise RuntimeError(f"{self._at(index)}: {_CHANGED_IN_PLACE}")
            return output, [self._taken[index] for index in range(len(self._layers))]
        except RuntimeError as error:
            if "modified inplace" in str(error):
                raise RuntimeError(f"{self._argument} {self._layers}: {_CHANGED_IN_PLACE}") from error
            raise
        finally:
            self._taken, self._versions = None, {}

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._attached = [], False

    def _find(self, modules: dict[str, nn.Module], index: int) -> nn.Module:
        name = self._layers[index].partition(":")[0]
        if name and name in modules:
            return modules[name]
        near = difflib.get_close_matches(name, filter(None, modules), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(map(repr, near))}?" if near else f"it has {', '.join(list(modules)[1:6])}, ..."
        raise ValueError(f"{self._at(index)} is no layer of {type(self._network).__name__}; {hint}")

    def collect(self, index: int, output: Any) -> Any:
        """Take what is wanted of layer `index`; returns what the network goes on with."""
        if self._taken is None:
            return None
        if index in self._taken:
            raise ValueError(f"{self._at(index)} ran more than once in a forward pass; name a layer that runs once")
        element = self._layers[index].partition(":")[2]
        feature = self._element(output, element, index)
        check_feature(feature, self._at(index))
        passed_on, self._taken[index] = self._take(feature)
        if self._taken[index] is feature and not (torch.compiler.is_compiling() or feature.is_inference()):
            self._versions[index] = feature, feature._version
        return passed_on if not element else _replaced(output, element, passed_on)

    def _element(self, output: Any, element: str, index: int) -> Any:
        if not element:
            if isinstance(output, Tensor):
                return output
            raise ValueError(
                f"{self._at(index)} returns a {type(output).__name__}; choose an element, as in "
                f"'{self._layers[index]}:0'"
            )
        try:
            return output[element] if isinstance(output, dict) else output[int(element)]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise ValueError(f"{self._at(index)}: a {type(output).__name__} has no element {element!r}") from error

    def _at(self, index: int) -> str:
        return f"{self._argument}[{index}] '{self._layers[index]}'"


def _replaced(output: Any, element: str, value: Tensor) -> Any:
    if isinstance(output, dict):
        return type(output)({**output, element: value})
    items = list(output)
    items[int(element)] = value
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
