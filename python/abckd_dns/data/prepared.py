"""Examples made once and read many times: the dataset that reads what the command `prepare` made.

A prepared folder has noisy.npy and clean.npy, int16 (count, samples) at 16 kHz, and manifest.json.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..constants import SAMPLE_RATE
from ..errors import InputError

MANIFEST_NAME = "manifest.json"
SIDES = ("noisy", "clean")
FULL_SCALE = 2**15 - 1


class Prepared(Dataset):
    """`count` examples of `length` samples from a prepared folder: {"noisy": (N,), "clean": (N,)}.

    They go through the folder epoch by epoch, each in an order of its own: example i depends on (seed, i) alone.
    """

    def __init__(self, folder: Path, length: int, count: int, seed: int) -> None:
        self.length, self.count, self.seed = length, count, seed
        self._sides = open_prepared(folder)
        self.rows, available = self._sides["noisy"].shape
        if length > available:
            raise InputError(
                f"--prepared: {folder} has mixtures of {available / SAMPLE_RATE:g} s, "
                f"--segment-seconds wants {length / SAMPLE_RATE:g}"
            )

    def __len__(self) -> int:
        return self.count

    def inventory(self) -> str:
        """Number and length of what is prepared, and a digest of its first row."""
        first = hashlib.sha256(np.ascontiguousarray(self._sides["noisy"][0])).hexdigest()
        return f"{self._sides['noisy'].shape}, {first[:16]}"

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        epoch, position = divmod(index, self.rows)
        row = _order(self.rows, self.seed, epoch)[position]
        room = self._sides["noisy"].shape[1] - self.length
        start = np.random.default_rng((self.seed, index)).integers(room + 1) if room else 0
        return {name: as_waveform(side[row, start : start + self.length]) for name, side in self._sides.items()}


def as_waveform(stored: np.ndarray) -> Tensor:
    return torch.from_numpy(stored.astype(np.float32)) / FULL_SCALE


@functools.lru_cache(maxsize=2)
def _order(rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(rows)


def open_prepared(folder: Path, argument: str = "--prepared") -> dict[str, np.ndarray]:
    """Both sides, int16 (count, samples), mapped into memory. Raises InputError that blames `argument`."""
    try:
        shape = tuple(json.loads((folder / MANIFEST_NAME).read_text())["shape"])
        sides = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in SIDES}
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{argument}: {folder} is not what `abckd-dns prepare` leaves when it has finished: {error}"
        ) from error
    for name, side in sides.items():
        if side.shape != shape or side.dtype != np.int16:
            raise InputError(
                f"{argument}: {folder / name}.npy has {side.dtype} {side.shape}, its manifest says int16 {shape}"
            )
    return sides
