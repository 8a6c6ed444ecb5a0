"""Distiller: brings losses between named layers of a student and its teachers into any training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .balance import Balance
from .checkpointing import with_backward_of
from .hooks import Observed
from .layers import Layer
from .teachers import Reader, Source, Teacher
from .terms import Bound, Term
from .wanted import Taken, Wanted


class DistillerOutput(NamedTuple):
    """What a step gives.

    student     what the student returned.
    teacher     what the teacher returned; of several a dict.
    loss        the weighted sum of the terms: of one term its value, whatever the shape of that is.
    attention   (B, n, m), of a loss that has one, or None; of several terms a dict of those that have one.
    losses      the terms' values by name, before weights.
    """

    student: Any
    teacher: Any
    loss: Tensor
    attention: Any = None
    losses: dict[str, Tensor] = {}


class Distiller(nn.Module):
    """A student and its teacher, with knowledge-distillation losses between their named layers.

    student          a module.
    teacher          a module or a function; a `Teacher`, which has options; anything with `bind` (`Source`), as a cache
                     of features; or a dict of several by name. It may be the student, or share parts with it.
    student_layers   names of layers as in `named_modules()`, or `Layer`s. `distill.layers` says what can be written:
    teacher_layers   elements of nested outputs ("rnn:0"), the order of axes ("blocks.3@btc"), inputs ("relu@in"), calls
                     ("block@all"), the network's own output (":logits"). Features are read as (B, C, *spatial).
    loss             a loss of this library, or any callable loss(student_features, teacher_features) of two lists.
    terms            in place of layers and loss: a list of `Term`s, several losses on one pass.
    balance          "gradient": before weights, each term is scaled so that its gradient has the norm of the first
                     term's, over the student's parameters; measured in the first training step and every 100 after it,
                     which costs a backward pass per term then.

    `distiller(*inputs)` runs the teachers (eval mode, no gradients), then the student, and returns DistillerOutput. A
    loss with `tap_options` and `from_taps` (`ABCLoss`, `ATLoss`, `AFDLoss`) needs no feature: hooks reduce each one to
    its attention map where it arises, so that the teacher's can be freed at once, and the student's gradient is added
    in the backward pass that already reads the feature. Any other loss gets the features.

    The hooks are in the networks during `distiller(...)` only, and names mean what they mean then: layers may be
    replaced or wrapped, and copies, pickles and exports of the networks hold nothing of ours. A layer behind a named
    one may work in place: the feature is taken before, by a copy. Activation checkpointing may be around named layers
    and in them.

    The teacher is no part of the module: `parameters()`, `state_dict()` and `train()` are those of the student and of
    the losses, and `DistributedDataParallel`, `fully_shard` and optimizers see no more. `to()` moves the teacher, too.
    One thread at a time may call a distiller.

    Raises ValueError for a layer name that does not exist, with near matches, and when a forward pass runs a named
    layer not once, or finds no feature in what it returns.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        student_layers: Sequence[str | Layer] | None = None,
        teacher_layers: Sequence[str | Layer] | None = None,
        loss: Callable[..., Any] | None = None,
        *,
        terms: Sequence[Term] | None = None,
        balance: Literal["gradient"] | None = None,
    ):
        super().__init__()
        self.student = student
        if (terms is None) != (loss is not None and student_layers is not None and teacher_layers is not None):
            raise TypeError("terms: expected either student_layers, teacher_layers and loss, or terms")
        if terms is None:
            self.loss: Any = loss
            terms, prefixes = [Term(student_layers or (), teacher_layers or (), loss)], [""]  # type: ignore[arg-type]
        else:
            self.loss = nn.ModuleList(term.loss for term in terms if isinstance(term.loss, nn.Module))
            prefixes = [f"terms[{index}]." for index in range(len(terms))]
        self._several = len(prefixes) > 1 or prefixes[0] != ""
        self._names = [term.name or f"{index}" for index, term in enumerate(terms)]
        if len(set(self._names)) < len(self._names):
            raise ValueError(f"terms: names must differ, got {self._names}")
        self._teachers = _teachers(teacher)
        of_student: list[Wanted] = []
        of_teachers: dict[str, list[Wanted]] = {name: [] for name in self._teachers}
        self._terms, self._taught_by = [], []
        for term, prefix in zip(terms, prefixes, strict=True):
            taught_by = next(iter(self._teachers)) if term.teacher is None else term.teacher
            if taught_by not in self._teachers or (term.teacher is None and len(self._teachers) > 1):
                raise ValueError(f"{prefix}teacher: expected one of {list(self._teachers)}, got {term.teacher!r}")
            self._taught_by.append(taught_by)
            self._terms.append(Bound(term, prefix, of_student, of_teachers[taught_by]))
        self._observed = Observed(of_student)
        self._observed.check(student)
        self._readers: dict[str, Reader] = {
            name: source.bind(of_teachers[name]) for name, source in self._teachers.items()
        }
        if balance not in (None, "gradient"):
            raise ValueError(f"balance: expected 'gradient' or None, got {balance!r}")
        self._balance = Balance(len(terms)) if balance else None

    @property
    def teacher(self) -> Any:
        """The teacher as it was given; of several a dict."""
        found = {name: getattr(source, "network", source) for name, source in self._teachers.items()}
        return found if len(found) > 1 else next(iter(found.values()))

    def forward(
        self,
        *inputs,
        teacher_inputs: Any = None,
        examples: Any = None,
        lengths: Tensor | None = None,
        padded_length: int | None = None,
        **keywords,
    ) -> DistillerOutput:
        """Run the networks.

        inputs, keywords   of the student, and of the teachers where `teacher_inputs` says nothing else.
        teacher_inputs     of the teacher: a tensor, a tuple of arguments or a dict of keyword arguments; where there
                           are several teachers, a dict of these by name.
        examples           which examples these are, for a teacher that is looked up instead of run.
        lengths            (B,) integers, the valid part of each padded item, out of padded_length (for a waveform both
                           in samples); needed together. They are for the losses.
        """
        if (lengths is None) != (padded_length is None):
            raise ValueError("lengths and padded_length: give both or neither")
        if getattr(self, "_is_replica", False):
            raise RuntimeError("a Distiller cannot run in nn.DataParallel; use DistributedDataParallel")
        padding: dict[str, Any] = {}
        if lengths is not None:
            device = next((x.device for x in (*inputs, *keywords.values()) if isinstance(x, Tensor)), None)
            lengths = torch.as_tensor(lengths)
            padding = {"lengths": lengths if device is None else lengths.to(device), "padded_length": padded_length}
        taught = self._taught(inputs, keywords, teacher_inputs, padding, examples)
        learned = self._observed.take(self.student, inputs, keywords, padding)
        values, attention = {}, {}
        for name, term, teacher in zip(self._names, self._terms, self._taught_by, strict=True):
            reader = self._readers[teacher]
            value, seen = term(learned, taught[teacher], padding, (self._observed, getattr(reader, "observed", None)))
            values[name] = value
            if seen is not None:
                attention[name] = seen
        loss = self._sum(list(values.values()))
        if learned.joined and loss.requires_grad:
            loss = with_backward_of(loss, list(learned.joined))
        outputs = {name: taken.output for name, taken in taught.items()}
        return DistillerOutput(
            learned.output,
            outputs if len(outputs) > 1 else next(iter(outputs.values())),
            loss,
            attention if self._several else next(iter(attention.values()), None),
            values,
        )

    def _taught(
        self, inputs: tuple, keywords: dict, teacher_inputs: Any, padding: dict, examples: Any
    ) -> dict[str, Taken]:
        several = len(self._readers) > 1
        if several and teacher_inputs is not None and not set(teacher_inputs) <= set(self._readers):
            raise ValueError(f"teacher_inputs: expected some of {list(self._readers)}, got {list(teacher_inputs)}")
        taken = {}
        for name, reader in self._readers.items():
            own = teacher_inputs if not several or teacher_inputs is None else teacher_inputs.get(name)
            if own is None:
                taken[name] = reader.take(inputs, keywords, padding, examples)
            elif isinstance(own, Mapping):
                taken[name] = reader.take((), own, padding, examples)
            else:
                taken[name] = reader.take(own if isinstance(own, tuple) else (own,), {}, padding, examples)
        return taken

    def _sum(self, values: list[Tensor]) -> Tensor:
        weights = [bound.term.weight for bound in self._terms]
        if not self._several and not isinstance(weights[0], Tensor) and weights[0] == 1.0:
            return values[0]
        scales = [1.0] * len(values)
        if self._balance is not None:
            scales = self._balance(values, list(self.student.parameters()), self.training)
        total = sum(weight * (scale * value) for weight, scale, value in zip(weights, scales, values, strict=True))
        return total  # type: ignore[return-value]

    def student_state_dict(self) -> dict[str, Any]:
        """The student's state under its own names, whatever wraps it: what a model that goes its own way loads."""
        student = self.student
        while True:
            inner = next((student._modules[name] for name in ("_orig_mod", "module") if name in student._modules), None)
            if inner is None or len(student._modules) > 1:
                return student.state_dict()
            student = inner

    def remove_hooks(self) -> None:
        """Nothing: hooks are in the networks during a call only. Kept for code that calls it."""

    def __enter__(self) -> Distiller:
        return self

    def __exit__(self, *exception) -> None:
        self.remove_hooks()

    def _apply(self, function, recurse=True):
        super()._apply(function, recurse)
        mine = {id(module) for module in self.modules()}
        for network in self._networks():
            if id(network) not in mine:
                network._apply(function, recurse)
        return self

    def _networks(self, saved: bool = False) -> list[nn.Module]:
        return [
            source.network
            for source in self._teachers.values()
            if isinstance(source, Teacher) and isinstance(source.network, nn.Module)
            and (source.saved if saved else source.device is None)
        ]  # fmt: skip

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, network in self._saved().items():
            network.state_dict(destination=destination, prefix=f"{prefix}{name}", keep_vars=keep_vars)

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        unexpected[:] = [key for key in unexpected if not key.startswith(f"{prefix}teacher.")]
        for name, network in self._saved().items():
            start = f"{prefix}{name}"
            own = {key[len(start) :]: value for key, value in state_dict.items() if key.startswith(start)}
            found = network.load_state_dict(own, strict=False)
            missing += [f"{start}{key}" for key in found.missing_keys]
            unexpected += [f"{start}{key}" for key in found.unexpected_keys]

    def _saved(self) -> dict[str, nn.Module]:
        several = len(self._teachers) > 1
        return {
            f"teacher.{name}." if several else "teacher.": source.network
            for name, source in self._teachers.items()
            if isinstance(source, Teacher) and source.saved and isinstance(source.network, nn.Module)
        }


def _teachers(given: Any) -> dict[str, Source]:
    if isinstance(given, nn.Module):  # nn.ModuleDict is callable as any module is, but never runs
        return {"teacher": Teacher(given)}
    if isinstance(given, Mapping):
        if not given:
            raise ValueError("teacher: expected at least one in the dict")
        return {name: _teachers(one)["teacher"] for name, one in given.items()}
    return {"teacher": given if isinstance(given, Source) else Teacher(given)}
