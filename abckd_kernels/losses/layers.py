"""Layers that the learned parts of several losses share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .features import Padding


class ValidBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of (B, C, *spatial) by the valid positions' statistics; the other frames become zero."""

    def forward(self, x: Tensor, padding: Padding) -> Tensor:
        rows, mask = x.flatten(2), padding.mask(x)
        if mask is None:
            return super().forward(rows).view_as(x)
        valid = mask.repeat_interleave(rows.shape[2] // x.shape[2], 1)[:, None]
        if not self.training:
            return (super().forward(rows) * valid).view_as(x)
        count = valid.sum().clamp_min(1)
        mean = (rows * valid).sum((0, 2)) / count
        centred = (rows - mean[:, None]) * valid
        variance = centred.square().sum((0, 2)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1).clamp_min(1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return ((centred * scale[:, None] + self.bias[:, None]) * valid).view_as(x)
