"""Losses of different kinds on one scale, by the norms of their gradients."""

from __future__ import annotations

import torch
from torch import Tensor

EVERY = 100  # steps from one measurement to the next


class Balance:
    """Scales for several losses, at which each one's gradient has the norm of the first one's."""

    def __init__(self, count: int):
        self.scales, self._steps = [1.0] * count, 0

    def __call__(self, values: list[Tensor], parameters: list[Tensor], training: bool) -> list[float]:
        """The scales; measured anew in some steps. `values` are scalars with their graphs."""
        if not training or not torch.is_grad_enabled():
            return self.scales
        if self._steps % EVERY == 0 and not torch.compiler.is_compiling():
            norms = [gradient_norm(value, parameters) for value in values]
            self.scales = [norms[0] / norm if norm > 0 and norms[0] > 0 else 1.0 for norm in norms]
        self._steps += 1
        return self.scales


def gradient_norm(value: Tensor, parameters: list[Tensor]) -> float:
    """The 2-norm of the gradient of a scalar; its graph stays. Waits for the device."""
    trained = [p for p in parameters if p.requires_grad]
    gradients = torch.autograd.grad(value, trained, retain_graph=True, allow_unused=True)
    found = [g.float().norm() for g in gradients if g is not None]
    return float(torch.stack(found).norm()) if found else 0.0
