"""The manifest of a cache: who wrote what, and whether that is what is asked for."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..distill.layers import Layer
from ..ops.shapes import describe

FORMAT = 1
FILE = "manifest.json"


class CacheError(ValueError):
    """A cache that is not there, not whole, damaged, or of something else than what is asked for."""


@dataclass(frozen=True)
class Kept:
    """A tensor of every example: shape of one row, dtype in the file, dtype of what the teacher gave."""

    shape: tuple[int, ...]
    stored: str
    given: str

    @classmethod
    def of(cls, stored: Tensor, given: Tensor) -> Kept:
        return cls(tuple(stored.shape[1:]), name_of(stored.dtype), name_of(given.dtype))


@dataclass(frozen=True)
class Manifest:
    """What a cache holds.

    count          examples.
    shard          examples of a shard; the last one may have fewer.
    teacher        the class of the network that wrote it.
    teacher_hash   of its state (`hash_of`).
    layers         names of layers.
    tap            options of `tap` by which features became maps and means; None: whole features.
    dtype          of what is kept in floating point; None: as the teacher gave it.
    output         the form of what is kept of the teacher's output: "", "Tensor", "dict" or "TopK".
    tensors        by name, what every example has.
    """

    count: int
    shard: int
    teacher: str
    teacher_hash: str
    layers: tuple[str, ...]
    tap: dict[str, Any] | None
    dtype: str | None
    output: str = ""
    tensors: dict[str, Kept] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def shards(self) -> int:
        return -(-self.count // self.shard)

    def examples(self, shard: int) -> range:
        """The examples of a shard."""
        return range(shard * self.shard, min((shard + 1) * self.shard, self.count))

    def digest(self) -> str:
        """Of all of it; shards carry it, so that one of another cache is noticed."""
        return hashlib.sha256(self.text().encode()).hexdigest()

    def text(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @property
    def bytes_per_example(self) -> int:
        """In the shards."""
        return sum(dtype_of(x.stored).itemsize * torch.Size(x.shape).numel() for x in self.tensors.values())


def read(folder: Path) -> Manifest:
    """The manifest of a cache. Raises CacheError."""
    path = folder / FILE
    if not path.is_file():
        raise CacheError(f"{folder}: expected a cache, but there is no {FILE}; cache_teacher(...) writes one")
    try:
        values = json.loads(path.read_text())
        if values["format"] != FORMAT:
            raise CacheError(f"{path}: expected format {FORMAT}, got {describe(values['format'])}; write it again")
        tensors = {name: Kept(**kept | {"shape": tuple(kept["shape"])}) for name, kept in values["tensors"].items()}
        return Manifest(**values | {"layers": tuple(values["layers"]), "tensors": tensors})
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise CacheError(f"{path}: expected the manifest of a cache, but it is damaged: {error}") from error


def check_same(folder: Path, found: Manifest, wanted: Manifest) -> None:
    """Raise CacheError, naming all that differs, unless the cache that is there is the one that is to be written."""
    differing = [
        f"{name} {describe(getattr(found, name))}, now {describe(getattr(wanted, name))}"
        for name in asdict(wanted)
        if getattr(found, name) != getattr(wanted, name)
    ]
    if differing:
        raise CacheError(
            f"{folder}: expected to go on with the cache that is there, but it was begun with {'; '.join(differing)}. "
            "Give another folder, or delete this one"
        )


def hash_of(network: nn.Module) -> str:
    """SHA-256 of all parameters and buffers that a state dict has: names, dtypes, shapes, values."""
    total = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if not isinstance(value, Tensor):
            total.update(f"{name} {value!r}".encode())
            continue
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        value = value.detach().to_dense() if value.layout != torch.strided else value.detach()
        total.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def key_of(layer: Layer) -> str:
    """What a layer is called in a manifest: all that decides what is read of it."""
    transform = layer.transform
    return str(layer) + (f" by {getattr(transform, '__qualname__', type(transform).__name__)}" if transform else "")


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def dtype_of(name: str) -> torch.dtype:
    return getattr(torch, name)
