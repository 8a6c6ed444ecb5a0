"""Shards: files of examples, there as a whole or not at all, read as memory maps."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from .manifest import CacheError, Manifest, dtype_of

AGAIN = "delete it, and the call of cache_teacher that wrote the others writes it again"


def path_of(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.safetensors"


def missing(folder: Path, manifest: Manifest) -> list[int]:
    """Shards that are still to be written."""
    return [shard for shard in range(manifest.shards) if not path_of(folder, shard).is_file()]


def write(folder: Path, shard: int, tensors: dict[str, Tensor], manifest: Manifest) -> None:
    """Write a shard under its name only when all of it is on the disk."""
    path = path_of(folder, shard)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        _safetensors("safetensors.torch").save_file(
            {name: x.contiguous() for name, x in tensors.items()}, part, {"manifest": manifest.digest()}
        )
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read(folder: Path, shard: int, manifest: Manifest) -> dict[str, Tensor]:
    """The tensors of a shard, not yet read from the disk. Raises CacheError where it is not what the manifest says."""
    path, examples = path_of(folder, shard), manifest.examples(shard)
    if not path.is_file():
        raise CacheError(
            f"{path}: expected examples {examples.start} to {examples.stop - 1}, but there is no such file; "
            "the call of cache_teacher that wrote the others finishes them"
        )
    library = _safetensors("safetensors")
    try:
        with library.safe_open(path, "pt") as file:
            digest = (file.metadata() or {}).get("manifest")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except library.SafetensorError as error:
        raise CacheError(f"{path}: expected a whole shard, but it is damaged ({error}); {AGAIN}") from error
    if digest != manifest.digest():
        raise CacheError(f"{path}: expected a shard of this cache, but it belongs to another one; {AGAIN}")
    for name, kept in manifest.tensors.items():
        found = tensors.get(name)
        expected = (len(examples), *kept.shape), dtype_of(kept.stored)
        if found is None or (tuple(found.shape), found.dtype) != expected:
            raise CacheError(f"{path}: expected {name} of shape {expected[0]} in {expected[1]}; {AGAIN}")
    return tensors


def _safetensors(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError("cached teachers need safetensors: pip install 'abckd-kernels[cache]'") from error
