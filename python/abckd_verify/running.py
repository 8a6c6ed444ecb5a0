"""An op's kernels called directly: what each is given and returns, by name, and the fewest bytes that it can move."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from abckd_kernels import backends
from abckd_kernels.ops.shapes import valid_frames

from .spec import Spec, tensors


class Run:
    """Forward and backward of an op's kernels, by the backend in force. Nothing has run at first.

    arguments   of forward, by name.
    entry       of (op's name with its direction) to what is called; by default the backend in force.
    """

    def __init__(self, spec: Spec, arguments: dict, entry: Callable[[str], Callable] | None = None):
        self.spec, self.arguments, self.contract = spec, arguments, spec.contract
        device = tensors(arguments.values())[0].device
        self._entry = entry or (lambda name: backends.kernel(name, device))
        self.results: dict = {}
        self.gradients: dict = {}

    def forward(self) -> dict:
        given = self.arguments | {"gradients": True}
        returned = self._entry(f"{self.spec.name}_forward")(*(given[x] for x in self.contract.forward_arguments))
        self.results = _named(self.contract.forward_results, returned)
        return self.results

    def backward(self) -> dict:
        """Of the results of the last `forward`; of gradients that are 1."""
        given = self.backward_arguments()
        returned = self._entry(f"{self.spec.name}_backward")(*given.values())
        self.gradients = _named(self.contract.differentiated, returned)
        return self.gradients

    def backward_arguments(self) -> dict:
        known = self.arguments | self.results
        return {name: known[name] if name in known else self._made(name) for name in self.contract.backward_arguments}

    def _made(self, name: str):
        if name == "needed":
            return [self.arguments[x] is not None for x in self.contract.differentiated]
        if name.endswith("_sizes"):
            return [n for x in self.arguments[name.removesuffix("_sizes")] for n in x.shape[1:]]
        result = name.removeprefix("grad_")
        if self.arguments.get(self.spec.through.get(result, result), 1) is None:
            return None
        value = (self.arguments | self.results)[result]
        if value == []:
            return [None] * len(self.arguments[self.contract.passing])
        return [torch.ones_like(x) for x in value] if isinstance(value, list) else torch.ones_like(value)

    def bytes(self, direction: str) -> int:
        """The fewest bytes that the last run in a direction could move: what it needs is read once, what it gives is
        written once. Of what the Spec calls framed, valid frames are needed; every result is written in full."""
        if direction == "forward":
            read, written = self.arguments, self.results
        else:
            given = self.backward_arguments()
            read, written = {k: x for k, x in given.items() if k not in self.spec.unread}, self.gradients
        return sum(self._needed(name, x) for name, value in read.items() for x in tensors([value])) + sum(
            x.nbytes for x in tensors(written.values())
        )

    def _needed(self, name: str, x: Tensor) -> int:
        lengths, axis = self.arguments.get("lengths"), self.spec.framed.get(name)
        if lengths is None or axis is None or not x.numel():
            return x.nbytes
        valid = valid_frames(lengths, x.shape[axis], self.arguments["padded_length"]).sum()
        return x.nbytes // (x.shape[0] * x.shape[axis]) * int(valid)


def _named(names: list[str], returned) -> dict:
    return dict(zip(names, returned if len(names) > 1 else [returned], strict=True))
