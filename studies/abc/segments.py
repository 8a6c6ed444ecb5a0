"""Batches of segments: noisy and clean speech, and what a cached teacher says of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .cache import Cache
from .package import HOP, InputError

LENGTH = 64 * HOP  # 1.024 s
FRAMES = 1 + LENGTH // HOP
MIXTURES = 1700  # of 4 s, 1.9 hours: what every run learns from, with a teacher or without


@dataclass(frozen=True)
class Batch:
    noisy: Tensor
    """(B, LENGTH)"""
    clean: Tensor
    response: Tensor
    """Of the teacher; zeros without one."""
    maps: list[Tensor]
    """(B, FRAMES, F_j) by layer; none unless wanted."""
    features: list[Tensor]
    """(B, 16, FRAMES, G_j) by layer; none unless wanted."""


class Segments:
    """Batches that depend on (seed, step) alone. Segments begin at the student's frames."""

    def __init__(
        self, mixtures: Path, cache: Cache | None, seed: int, batch_size: int = 8, count: int = MIXTURES
    ) -> None:
        self._sides = [np.load(mixtures / f"{side}.npy", mmap_mode="r") for side in ("noisy", "clean")]
        self.count = min(count, len(self._sides[0]))
        if cache is not None and cache.count < self.count:
            raise InputError(f"the teacher's cache has {cache.count} mixtures, {self.count} are learned from")
        self._cache, self._seed, self.batch_size = cache, seed, batch_size
        self._starts = (self._sides[0].shape[1] - LENGTH) // HOP + 1

    def batch(self, step: int, maps: bool = True, features: bool = True) -> Batch:
        rows, starts = self._places(step)
        first = [start * HOP for start in starts]
        noisy, clean = (
            _waveforms([side[row, at : at + LENGTH] for row, at in zip(rows, first, strict=True)])
            for side in self._sides
        )
        if self._cache is None:
            return Batch(noisy, clean, torch.zeros_like(noisy), [], [])
        response = _waveforms([self._cache.output(r, s, LENGTH) for r, s in zip(rows, first, strict=True)])
        return Batch(
            noisy,
            clean,
            response,
            self._cache.maps(rows, starts, FRAMES) if maps else [],
            self._cache.features(rows, starts, FRAMES) if features else [],
        )

    def _places(self, step: int) -> tuple[list[int], list[int]]:
        """Rows go through the mixtures epoch by epoch, each in an order of its own."""
        rows = []
        for index in range(step * self.batch_size, (step + 1) * self.batch_size):
            epoch, position = divmod(index, self.count)
            rows.append(int(np.random.default_rng((self._seed, epoch)).permutation(self.count)[position]))
        rng = np.random.default_rng((self._seed, 1, step))
        return rows, [int(x) for x in rng.integers(self._starts, size=self.batch_size)]

    def __iter__(self) -> Iterator[Batch]:
        step = 0
        while True:
            yield self.batch(step)
            step += 1


def _waveforms(rows: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(rows).astype(np.float32)) / (2**15 - 1)
