"""Activation checkpointing: layers that run again in the backward pass.

Hooks are there in the forward pass only, so what a hook computes is not computed again. In a region of the kind that is
not reentrant, what it saves must therefore not be counted among what the region saves: `kept_out` keeps the tensors
themselves (a named feature, which a loss on features keeps anyway).

In a region of the reentrant kind the layer runs without a graph, so a loss gets leaves instead. When their gradients
arrive, a hook is put on the layer for the rest of that backward pass; when the layer runs again it brings the gradients
into the graph. What does not reach the layer in that way is an error, at the end of the same backward pass.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import CheckpointFunction

_IN_PLACE = "one of the variables needed for gradient computation has been modified by an inplace operation"


@contextmanager
def kept_out() -> Iterator[None]:
    """What is saved for backward here belongs to no checkpointed region around it."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    hooks = top(False) if top is not None else None
    if hooks is None or getattr(hooks[0], "__module__", "") != "torch.utils.checkpoint":
        yield
        return
    with saved_tensors_hooks(_pack, _unpack):
        yield


def _pack(x: Tensor) -> tuple[Tensor, int]:
    return x, x._version


def _unpack(packed: tuple[Tensor, int]) -> Tensor:
    x, version = packed
    if x._version != version:
        raise RuntimeError(_IN_PLACE)
    return x


def in_reentrant_region() -> bool:
    """Whether a checkpoint of the reentrant kind is running its function now."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is CheckpointFunction.forward.__code__:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


class Recomputed:
    """The gradients of what was taken of a layer in a reentrant region, on their way to the layer when it runs again.

    put, remove   a hook on the layer and off it again; it calls the hook's `run_again` when the layer runs.
    where         the layer, for messages.
    """

    def __init__(self, put: Callable[[Recomputed], None], remove: Callable[[], None], where: str):
        self._put, self._remove, self._where = put, remove, where
        self._gradients: dict[int, Tensor] = {}

    def leaves(self, values: list[Tensor | None]) -> list[Tensor | None]:
        """Leaves that equal what was taken; their gradients are waited for."""
        return [None if value is None else self._leaf(index, value) for index, value in enumerate(values)]

    def _leaf(self, index: int, value: Tensor) -> Tensor:
        leaf = value.detach().requires_grad_()
        leaf.register_hook(lambda gradient: self._arrived(index, gradient))
        return leaf

    def _arrived(self, index: int, gradient: Tensor) -> None:
        if not self._gradients:
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)
            self._put(self)
        self._gradients[index] = gradient

    def inject(self, passed_on: Tensor, values: list[Tensor | None]) -> Tensor:
        """`passed_on`, whose backward gives the values, taken again, the gradients that arrived."""
        gradients, self._gradients = self._gradients, {}
        self._remove()
        return _Inject.apply(passed_on, *(values[index] for index in gradients), *gradients.values())

    def _finish(self) -> None:
        if self._gradients:
            self._gradients = {}
            self._remove()
            raise RuntimeError(
                f"{self._where}: it runs in reentrant activation checkpointing, and the gradient of the distillation "
                "loss came when its backward was over; call backward() once, of the sum of all losses, or checkpoint "
                "with use_reentrant=False"
            )


class _Inject(torch.autograd.Function):
    """passed_on, values..., gradients... -> passed_on; the values get the gradients."""

    @staticmethod
    def forward(ctx, passed_on, *values_and_gradients):
        count = len(values_and_gradients) // 2
        ctx.save_for_backward(*values_and_gradients[count:])
        return passed_on.clone()  # what follows may change it in place

    @staticmethod
    def backward(ctx, grad):
        gradients = ctx.saved_tensors
        return grad, *gradients, *[None] * len(gradients)


def with_backward_of(loss: Tensor, outputs: list[Tensor]) -> Tensor:
    """`loss`, whose backward pass goes through the network that gave `outputs`, with a gradient of zero."""
    return _Join.apply(loss, *outputs)


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss, *outputs):
        ctx.like = [(x.shape, x.dtype, x.device) for x in outputs]
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx, grad):
        return grad, *(torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.like)
