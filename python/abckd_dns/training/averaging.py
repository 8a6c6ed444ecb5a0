"""The running mean of a network's weights over the steps of a run (Polyak averaging with exponential decay)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import InputError


class Average:
    """Mean of the trained parameters of `network`, the weight of older steps falling by `decay` with each; without
    decay it is the network itself.

    The first means are over few steps: after t of them the decay is at most (1 + t) / (10 + t). Batch statistics are
    running means already; those of the network stand.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self._live = {name: p for name, p in network.named_parameters() if p.requires_grad} if decay else {}
        self._mean = {name: p.detach().clone() for name, p in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After the `step`-th step, counted from 1. A step that was skipped has left the weights as they were."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, mean in self._mean.items():
            mean.lerp_(self._live[name].detach(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within `with`, the network has the mean weights; then again, bit by bit, its own."""
        own = {name: p.detach().clone() for name, p in self._live.items()}
        self._fill(self._mean)
        try:
            yield
        finally:
            self._fill(own)

    @torch.no_grad()
    def _fill(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self._live[name].copy_(value)

    def state(self) -> dict[str, Tensor]:
        return self._mean

    def load(self, saved: dict[str, Tensor]) -> None:
        """Raises InputError if they are of another network."""
        if saved.keys() != self._mean.keys():
            raise InputError("--out: the averaged weights of the state are of another network; choose another folder")
        for name, value in saved.items():
            self._mean[name].copy_(value)
