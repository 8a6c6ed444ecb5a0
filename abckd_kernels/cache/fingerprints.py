"""Fingerprints of examples: one number each, by which another example than the cached one is noticed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element
_SPREAD = -0x61C8864680B583EB  # 2^64 / golden ratio, as int64
_MIX = -0x40A7B892E31B1A47


def fingerprints(inputs: Sequence[Any]) -> Tensor:
    """(B,) int64, of all tensors among a network's positional inputs, where they lie: the batch is their first axis.

    A sum of all elements' bits times odd numbers, modulo 2^64: the same on every device and in any batch. An example in
    another dtype, padded or augmented otherwise, is another one. Raises ValueError without a tensor, or where batch
    sizes differ.
    """
    tensors = [x.detach() for x in inputs if isinstance(x, Tensor) and x.dim()]
    if not tensors or any(x.shape[0] != tensors[0].shape[0] for x in tensors):
        shapes = [tuple(x.shape) for x in tensors]
        raise ValueError(f"inputs: expected tensors with one batch axis in front, got shapes {shapes}")
    total = torch.zeros(tensors[0].shape[0], dtype=torch.int64, device=tensors[0].device)
    for place, x in enumerate(tensors):
        rows = (torch.view_as_real(x) if x.is_complex() else x).contiguous()
        bits = rows.view(_INTEGERS[rows.element_size()]).reshape(len(x), -1)
        factors = torch.arange(1, bits.shape[1] + 1, device=x.device) * _SPREAD + place
        factors = (factors ^ (factors >> 29)) * _MIX | 1
        total += ((bits.to(torch.int64) + 1) * factors).sum(1).to(total.device)
    return total
