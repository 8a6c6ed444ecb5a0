"""Mixtures made once and read many times: the command `prepare`, and the dataset that reads what it made.

A prepared folder has noisy.npy and clean.npy, int16 (count, samples) at 16 kHz, and manifest.json.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..constants import SAMPLE_RATE
from ..errors import InputError
from ..files import write_json, writing
from ..options import PrepareOptions, samples
from .mixtures import Mixtures

_MANIFEST_NAME = "manifest.json"
_SIDES = ("noisy", "clean")
_FULL_SCALE = 2**15 - 1


def prepare(options: PrepareOptions) -> None:
    if options.out.exists():
        raise InputError(f"--out: {options.out} exists; delete it, or choose another folder")
    length = samples(options.segment_seconds)
    examples = Mixtures(options, length, options.count, options.seed)
    unfinished = options.out.with_name(options.out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with writing(options.out):
        unfinished.mkdir(parents=True)
        # Written, not mapped into memory: a full disk kills a process that writes to a map.
        with ExitStack() as stack:
            files = {name: stack.enter_context((unfinished / f"{name}.npy").open("wb")) for name in _SIDES}
            for file in files.values():
                header = {"descr": "<i2", "fortran_order": False, "shape": (options.count, length)}
                np.lib.format.write_array_header_1_0(file, header)
            batches = DataLoader(examples, batch_size=16, num_workers=options.workers)
            progress = stack.enter_context(tqdm(total=options.count, desc="prepare", unit="mixture"))
            for batch in batches:
                for name, file in files.items():
                    file.write((batch[name].clamp(-1, 1) * _FULL_SCALE).round().numpy().astype("<i2").tobytes())
                progress.update(len(batch["noisy"]))
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        write_json(unfinished / _MANIFEST_NAME, {"shape": [options.count, length], "options": options.model_dump()})
        unfinished.rename(options.out)


class Prepared(Dataset):
    """`count` examples of `length` samples from a prepared folder: {"noisy": (N,), "clean": (N,)}.

    They go through the folder epoch by epoch, each in an order of its own: example i depends on (seed, i) alone.
    """

    def __init__(self, folder: Path, length: int, count: int, seed: int) -> None:
        self.length, self.count, self.seed = length, count, seed
        self._sides = _open(folder)
        self.rows, available = self._sides["noisy"].shape
        if length > available:
            raise InputError(
                f"--prepared: {folder} has mixtures of {available / SAMPLE_RATE:g} s, "
                f"--segment-seconds wants {length / SAMPLE_RATE:g}"
            )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        epoch, position = divmod(index, self.rows)
        row = _order(self.rows, self.seed, epoch)[position]
        room = self._sides["noisy"].shape[1] - self.length
        start = np.random.default_rng((self.seed, index)).integers(room + 1) if room else 0
        return {
            name: torch.from_numpy(side[row, start : start + self.length].astype(np.float32)) / _FULL_SCALE
            for name, side in self._sides.items()
        }


@functools.lru_cache(maxsize=2)
def _order(rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(rows)


def _open(folder: Path) -> dict[str, np.ndarray]:
    try:
        shape = tuple(json.loads((folder / _MANIFEST_NAME).read_text())["shape"])
        sides = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _SIDES}
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"--prepared: {folder} is not what `abckd-dns prepare` leaves when it has finished: {error}"
        ) from error
    for name, side in sides.items():
        if side.shape != shape or side.dtype != np.int16:
            raise InputError(
                f"--prepared: {folder / name}.npy has {side.dtype} {side.shape}, its manifest says int16 {shape}"
            )
    return sides
