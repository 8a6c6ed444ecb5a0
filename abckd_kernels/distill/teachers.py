"""Where a Distiller gets the teacher's features from: a network that runs, or anything else with `bind`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..losses.common.features import constant
from .hooks import Observed
from .wanted import Taken, Wanted


class Reader(Protocol):
    """Gives what was bound, step by step."""

    def take(
        self, inputs: Sequence, keywords: Mapping[str, Any], padding: Mapping[str, Any], examples: Any = None
    ) -> Taken:
        """What is wanted of the teacher for these inputs.

        inputs, keywords   the teacher's arguments.
        padding            {} or lengths and padded_length.
        examples           what `distiller(..., examples=)` was given: which examples these are, for a teacher that is
                           looked up instead of run.
        """


@runtime_checkable
class Source(Protocol):
    """A teacher: something that can give features of layers, now and in every step."""

    def bind(self, wanted: Sequence[Wanted]) -> Reader:
        """A reader of what is wanted. Raises ValueError for what the teacher cannot give."""


class Teacher:
    """A network, or a function, that teaches: it runs without gradients, in eval mode.

    network   a module; a TorchScript or exported program; or a function, which returns what the layers name: ":0",
              ":mid". The network may be the student or share parts with it: nothing of it is changed, and modules that
              are in training mode are so again after the teacher's pass.
    device    the teacher's own: it is moved there, inputs are moved to it and what it gives comes back to the student's
              device. Default: it is where it is, and moves with the Distiller, as parts of a network do.
    saved     its state belongs into the Distiller's (an average of the student, say).
    """

    def __init__(self, network: Callable, *, device: torch.device | str | None = None, saved: bool = False):
        if not callable(network):
            raise TypeError(f"teacher: expected a module or a function, got {type(network).__name__}")
        self.network, self.saved = network, saved
        self.device = None if device is None else torch.device(device)
        if isinstance(network, nn.Module) and self.device is not None:
            network.to(self.device)

    def bind(self, wanted: Sequence[Wanted]) -> Reader:
        """A reader that runs the network. Raises ValueError for names that it has no layer of."""
        observed = Observed(wanted)
        observed.check(self.network)
        return _Running(self, observed)


class _Running:
    def __init__(self, teacher: Teacher, observed: Observed):
        self.teacher, self.observed = teacher, observed

    def take(
        self, inputs: Sequence, keywords: Mapping[str, Any], padding: Mapping[str, Any], examples: Any = None
    ) -> Taken:
        teacher, home = self.teacher, None
        if teacher.device is not None:
            home = next((x.device for x in tree_leaves((inputs, keywords)) if isinstance(x, Tensor)), None)
            inputs, keywords, padding = (_moved(x, teacher.device) for x in (inputs, keywords, padding))
        with torch.no_grad(), in_eval_mode(teacher.network):
            output, values, packed, _ = self.observed.take(teacher.network, inputs, keywords, padding)
        values = [[tuple(map(_constant, x)) if isinstance(x, tuple) else x for x in calls] for calls in values]
        return Taken(*(_moved(x, home) for x in (output, values, packed)))


def _constant(x: Tensor | None) -> Tensor | None:
    return None if x is None else constant(x)


def _moved(x: Any, device: torch.device | None) -> Any:
    if device is None:
        return x
    return tree_map(lambda y: y.to(device, non_blocking=True) if isinstance(y, Tensor) else y, x)


@contextmanager
def in_eval_mode(network: Any) -> Iterator[None]:
    """The modules of a network in eval mode; afterwards each is in the mode in which it was."""
    training = [module for module in network.modules() if module.training] if isinstance(network, nn.Module) else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
