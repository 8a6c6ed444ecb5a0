"""cache_teacher: runs a teacher once over a data set, and keeps what losses need of it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from ..distill.hooks import Observed
from ..distill.layers import Layer
from ..distill.teachers import in_eval_mode
from ..distill.wanted import wanted_of
from ..losses.response.top_k import TopK
from ..ops.shapes import describe
from . import manifest, shards
from .fingerprints import fingerprints
from .manifest import CacheError, Kept, Manifest, name_of
from .reading import TeacherCache


def cache_teacher(
    folder: str | Path,
    teacher: nn.Module,
    dataset: Dataset,
    layers: Sequence[str | Layer],
    *,
    taps: Any = "default",
    output: Callable[[Any], Any] | None = None,
    inputs: Callable[[Any], Any] | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int = 8,
    shard: int = 256,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    part: tuple[int, int] = (0, 1),
) -> TeacherCache | None:
    """Write a cache of a teacher, or what is missing of it; the cache.

    folder        is made. A call that was interrupted goes on where it stopped, at the first shard that is not there.
    teacher       runs in eval mode without gradients; its modes are restored.
    dataset       has a length, and gives the same example for the same position every time, all of one shape.
    layers        of the teacher, as for a Distiller; may be empty where the output is kept.
    taps          what is kept of features: a loss with `tap_options` (ABCLoss, ATLoss, AFDLoss), or such options, keeps
                  attention maps and channel means, 1/C of the features; by default both, with power 2. None keeps the
                  features, which serves every loss.
    output        what is kept of the teacher's output, from that output: a tensor, a dict of tensors or a `TopK`, each
                  with the batch first. `lambda y: y` keeps it, `lambda y: top_k(y.logits, 64, dim=-1)` the likeliest
                  classes. None keeps nothing.
    inputs        the teacher's positional inputs, from a collated batch: a tensor or a tuple. None: the batch is the
                  tensor.
    dtype         of what is kept in floating point; None: as the teacher gives it. bfloat16 and float16 halve float32.
    batch_size    examples of a forward pass.
    shard         examples of a file, which are in memory at once.
    num_workers   of the DataLoader.
    device        where the teacher and its inputs are moved; None: the teacher stays, and inputs go where it is.
    part          (i, n): the i-th of n processes that write one cache together, each every n-th shard.

    Returns None where other parts are still missing. Raises CacheError for a folder with a cache of another teacher,
    other options or another data set, for examples of different shapes, and for values that `dtype` can't hold.
    """
    folder, options = Path(folder), _tap_options(taps)
    rank, parts = part
    for name, value in (("batch_size", batch_size), ("shard", shard)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected a positive whole number, got {describe(value)}")
    if not 0 <= rank < parts:
        raise ValueError(f"part: expected (i, n) with 0 <= i < n, got {part!r}")
    if not layers and output is None:
        raise ValueError("layers: expected at least one, or output=, so that there is something to keep")
    count = len(dataset)  # type: ignore[arg-type]
    if count < 1:
        raise ValueError("dataset: expected at least one example, got 0")
    observed = Observed(wanted_of(layers, "layers", options) if layers else [])
    observed.check(teacher)
    names = tuple(manifest.key_of(one.layer) for one in observed.wanted)
    wanted = Manifest(
        count, shard, type(teacher).__name__, manifest.hash_of(teacher), names, options,
        None if dtype is None else name_of(dtype),
    )  # fmt: skip
    source = _Source(teacher, observed, wanted, dataset, output, inputs, dtype, batch_size, num_workers, device)
    with torch.no_grad(), in_eval_mode(teacher):
        agreed = _begun(folder, wanted, source)
        for index in shards.missing(folder, agreed):
            if index % parts == rank:
                shards.write(folder, index, source.rows(agreed.examples(index), agreed), agreed)
    return None if shards.missing(folder, agreed) else TeacherCache(folder)


def _tap_options(taps: Any) -> dict[str, Any] | None:
    if taps is None:
        return None
    given = {} if isinstance(taps, str) and taps == "default" else getattr(taps, "tap_options", taps)
    if not isinstance(given, Mapping) or not set(given) <= {"power", "means"}:
        expected = "a loss with tap_options, a dict of power and means, or None"
        raise ValueError(f"taps: expected {expected}, got {describe(taps)}")
    return {"power": 2, "means": True} | dict(given)


def _begun(folder: Path, wanted: Manifest, source: _Source) -> Manifest:
    """The manifest of the cache that is there, or of a new one."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / manifest.FILE).is_file():
        found = manifest.read(folder)
        manifest.check_same(folder, dataclasses.replace(found, output="", tensors={}), wanted)
        for index in set(range(found.shards)) - set(shards.missing(folder, found)):
            _check_dataset(folder, index, found, source)
        return found
    first, form = source.described(range(min(source.batch_size, wanted.count)))
    agreed = dataclasses.replace(wanted, output=form, tensors={name: Kept.of(*pair) for name, pair in first.items()})
    part = folder / f"{manifest.FILE}.{os.getpid()}.part"
    part.write_text(agreed.text())
    os.replace(part, folder / manifest.FILE)
    return agreed


def _check_dataset(folder: Path, shard: int, found: Manifest, source: _Source) -> None:
    """Raise CacheError unless the first example of a shard is still the same."""
    example = found.examples(shard)[0]
    if int(source.fingerprint(example)) != int(shards.read(folder, shard, found)["inputs"][0]):
        raise CacheError(
            f"dataset: expected the examples that {shards.path_of(folder, shard).name} has, but example {example} is "
            "another one: another data set, or one whose examples change from call to call"
        )


class _Source:
    """A teacher and a data set: rows of examples."""

    def __init__(
        self, teacher, observed: Observed, wanted: Manifest, dataset, output, inputs, dtype, batch_size, num_workers,
        device,
    ):  # fmt: skip
        self.batch_size = batch_size
        self._teacher, self._observed, self._wanted, self._dataset = teacher, observed, wanted, dataset
        self._output, self._inputs, self._dtype, self._workers = output, inputs, dtype, num_workers
        if device is not None:
            teacher.to(device)
        self._device = next((x.device for x in teacher.parameters()), torch.device("cpu")) if device is None else device

    def rows(self, examples: range, agreed: Manifest) -> dict[str, Tensor]:
        """What is kept of examples, as the manifest says. Raises CacheError."""
        found: dict[str, list[Tensor]] = {name: [] for name in agreed.tensors}
        for batch in self._batches(examples):
            rows, form = self._kept(batch)
            kept = {name: Kept.of(*pair) for name, pair in rows.items()}
            if kept != agreed.tensors or form != agreed.output:
                name = next(x for x in {**kept, **agreed.tensors} if kept.get(x) != agreed.tensors.get(x))
                raise CacheError(
                    f"dataset: expected {name} as {agreed.tensors.get(name)} as in the first examples, got "
                    f"{kept.get(name)} in examples {examples.start} to {examples.stop - 1}; all must have one shape"
                )
            for name, (stored, _) in rows.items():
                found[name].append(stored)
        return {name: torch.cat(parts) for name, parts in found.items()}

    def described(self, examples: range) -> tuple[dict[str, tuple[Tensor, Tensor]], str]:
        """{name: (as stored, as given)} of some examples, and the form of the output."""
        return self._kept(next(iter(self._batches(examples))))

    def fingerprint(self, example: int) -> Tensor:
        return fingerprints(self._of(next(iter(self._batches(range(example, example + 1))))))

    def _batches(self, examples: range):
        return DataLoader(Subset(self._dataset, examples), self.batch_size, num_workers=self._workers)

    def _of(self, batch: Any) -> tuple:
        """The teacher's positional inputs."""
        given = batch if self._inputs is None else self._inputs(batch)
        given = given if isinstance(given, tuple) else (given,)
        if not all(isinstance(x, Tensor) for x in given):
            got = describe(batch if self._inputs is None else given)
            raise TypeError(f"inputs: expected a function from a batch to a tensor or a tuple of tensors, got {got}")
        return given

    def _kept(self, batch: Any) -> tuple[dict[str, tuple[Tensor, Tensor]], str]:
        given = self._of(batch)
        taken = self._observed.take(self._teacher, tuple(x.to(self._device) for x in given))
        if taken.padding:
            raise CacheError("layers: expected tensors of whole examples, got a packed sequence, which is not cached")
        found: dict[str, Tensor] = {}
        for place, calls in enumerate(taken.values):
            if len(calls) != 1:
                raise CacheError(f"layer {self._wanted.layers[place]!r}: expected one call, got {len(calls)}; name one")
            found |= self._parts(place, calls[0])
        form, parts = ("", {}) if self._output is None else _flat(self._output(taken.output))
        found |= parts
        rows = {name: (self._narrowed(name, x.detach()), x) for name, x in found.items()}
        of_inputs = fingerprints(given).cpu()
        wrong = [name for name, (x, _) in rows.items() if x.dim() < 1 or len(x) != len(of_inputs)]
        if wrong:
            raise CacheError(
                f"{wrong[0]}: expected {len(of_inputs)} rows, one per example, got {tuple(rows[wrong[0]][0].shape)}"
            )
        return rows | {"inputs": (of_inputs, of_inputs)}, form

    def _parts(self, place: int, item: Any) -> dict[str, Tensor]:
        """What is kept of a layer, by name."""
        if self._wanted.tap is None:
            return {f"features.{place}": item}
        parts = zip(("maps", "means"), item, strict=True)
        return {f"{name}.{place}": x for name, x in parts if x is not None}

    def _narrowed(self, name: str, x: Tensor) -> Tensor:
        """In the dtype of the cache, on the host. Raises CacheError where that can't hold it."""
        if self._dtype is None or not x.is_floating_point():
            return x.cpu()
        narrow = x.to(self._dtype)
        if not torch.equal(narrow.isfinite(), x.isfinite()):
            kind, _, place = name.partition(".")
            what = f"{kind} of layer {self._wanted.layers[int(place)]!r}" if place.isdigit() else name
            raise CacheError(
                f"dtype: {what} has values up to {x[x.isfinite()].abs().max():.3g}, which {name_of(self._dtype)} can't "
                "hold; bfloat16 can"
            )
        return narrow.cpu()


def _flat(output: Any) -> tuple[str, dict[str, Tensor]]:
    """The form of what is kept of the output, and its tensors by name. Raises TypeError."""
    if isinstance(output, Tensor):
        return "Tensor", {"output": output}
    parts = output._asdict() if isinstance(output, TopK) else output
    if isinstance(parts, dict):
        parts = {f"output.{name}": x for name, x in parts.items() if x is not None}
        if parts and all(isinstance(x, Tensor) for x in parts.values()):
            indices = parts.get("output.indices")
            if isinstance(output, TopK) and indices is not None:
                parts["output.indices"] = indices.to(torch.int32)
            return ("TopK" if isinstance(output, TopK) else "dict"), parts
    expected = "a function that gives a tensor, a dict of tensors or a TopK"
    raise TypeError(f"output: expected {expected}, got {describe(output)}")
