"""TeacherCache: a teacher that is not run, but looked up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..distill.wanted import Taken, Wanted
from ..losses.response.top_k import TopK
from ..ops import tap
from ..ops.shapes import describe
from . import manifest, shards
from .fingerprints import fingerprints
from .manifest import CacheError, dtype_of

_ALL = {"power": 2, "means": True}  # what `tap` does by default
Examples = int | slice | Sequence[int] | Tensor
Rows = Mapping[str, Tensor]


class TeacherCache:
    """What a teacher said of every example of a data set, from the folder that `cache_teacher` wrote.

    folder          of the cache.
    teacher         a network that must be the one that wrote it; None: not checked.
    check_inputs    whether a step compares the inputs with those that the teacher saw, by a fingerprint each: it reads
                    the inputs once, and on a GPU waits for it. Compiled code never does.

    `Distiller(student, cache, student_layers, teacher_layers, loss)` trains without the teacher, with steps
    `distiller(x, examples=indices)`: positions (B,) in the data set. Rows may be fetched ahead, by the workers of a
    DataLoader or for torch.compile: `cache[index]` in a data set's `__getitem__` is a dict that collates to what
    `examples` takes, too.

    Tensors are memory maps: only the rows that are asked for are read. Copies and pickles open the files again.

    Raises CacheError, a ValueError, for a folder that is no cache, one that is not finished, or one of another teacher.
    """

    def __init__(self, folder: str | Path, *, teacher: nn.Module | None = None, check_inputs: bool = True):
        self.folder, self.check_inputs = Path(folder), check_inputs
        self.manifest = manifest.read(self.folder)
        absent = shards.missing(self.folder, self.manifest)
        if absent:
            done = self.manifest.shards - len(absent)
            raise CacheError(
                f"{self.folder}: expected {self.manifest.shards} shards, got {done}, without number {absent[0]}; "
                "the same call of cache_teacher writes the others"
            )
        if teacher is not None and manifest.hash_of(teacher) != self.manifest.teacher_hash:
            raise CacheError(
                f"teacher: expected the {self.manifest.teacher} that wrote {self.folder} "
                f"({self.manifest.teacher_hash[:12]}), got a {type(teacher).__name__} with other values "
                f"({manifest.hash_of(teacher)[:12]})"
            )
        self._opened: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return self.manifest.count

    def __repr__(self) -> str:
        of = self.manifest
        return f"TeacherCache({str(self.folder)!r}: {of.count} examples, {of.teacher}, {len(of.layers)} layers)"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}

    def __getitem__(self, examples: Examples) -> dict[str, Tensor]:
        """The rows of examples as they are stored, by name, and `example`, their positions.

        An integer gives one example, without a batch axis; a slice, integers or a tensor (B,) give a batch. Raises
        IndexError for examples that are not there.
        """
        if isinstance(examples, int) and not isinstance(examples, bool):
            return {name: x[0] for name, x in self[[examples]].items()}
        positions = self._positions(examples)
        where = positions // self.manifest.shard
        rows: dict[str, Tensor] = {"example": positions}
        for name, kept in self.manifest.tensors.items():
            rows[name] = torch.empty((len(positions), *kept.shape), dtype=dtype_of(kept.stored))
        for shard in where.unique().tolist():
            chosen = (where == shard).nonzero()[:, 0]
            inside = positions[chosen] - shard * self.manifest.shard
            for name, x in self._shard(shard).items():
                rows[name][chosen] = x[inside]
        return rows

    def bind(self, wanted: Sequence[Wanted]) -> Taught:
        """What a Distiller asks in every step. Raises CacheError for layers or tap options that the cache lacks."""
        return Taught(self, wanted)

    def output(self, examples: Examples | Rows, *inputs: Any) -> Any:
        """What was kept of the teacher's output on examples, on the device of the inputs, as the teacher gave it.

        inputs   the teacher's, to compare; without them nothing is compared, and the output is where the rows are.

        Raises CacheError where nothing was kept, and for inputs that are not those of the examples.
        """
        if not self.manifest.output:
            raise CacheError(f"{self.folder}: expected an output, but none was kept; write the cache with output=")
        return self.bind([]).take(inputs, {}, {}, examples).output

    def _positions(self, examples: Examples) -> Tensor:
        if isinstance(examples, slice):
            return torch.arange(*examples.indices(len(self)))
        try:
            positions = torch.as_tensor(examples, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"examples: expected positions in the data set, got {describe(examples)}") from error
        whole = positions.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
        if positions.dim() != 1 or (len(positions) and not whole):
            raise TypeError(f"examples: expected integers (B,), got {describe(examples)}")
        positions = positions.to(torch.int64)
        wrong = positions[(positions < 0) | (positions >= len(self))]
        if len(wrong):
            raise IndexError(f"examples: expected positions from 0 to {len(self) - 1}, got {int(wrong[0])}")
        return positions

    def _shard(self, shard: int) -> dict[str, Tensor]:
        if shard not in self._opened:
            self._opened[shard] = shards.read(self.folder, shard, self.manifest)
        return self._opened[shard]


class Taught:
    """A cached teacher's part of a step: a `distill.Reader` of some of its layers and what losses want of them."""

    def __init__(self, cache: TeacherCache, wanted: Sequence[Wanted]):
        self.cache, self._wanted = cache, list(wanted)
        known, kept = cache.manifest.layers, cache.manifest.tap
        for one in wanted:
            if manifest.key_of(one.layer) not in known:
                raise CacheError(
                    f"{one.where}: expected one of {', '.join(known)} in the cache, got {manifest.key_of(one.layer)!r}"
                )
            if kept is None:
                continue
            if one.tap is None:
                raise CacheError(
                    f"{one.where}: expected a loss that needs attention maps alone (abc, at, afd), because the cache "
                    "has no features; write it with taps=None"
                )
            options = _ALL | dict(one.tap)
            if options["power"] != kept["power"] or options["means"] > kept["means"]:
                raise CacheError(f"{one.where}: expected tap options {kept} as in the cache, got {options}")
        self._places = [known.index(manifest.key_of(one.layer)) for one in wanted]

    def take(
        self, inputs: Sequence[Any], keywords: Mapping[str, Any], padding: Mapping[str, Any], examples: Any = None
    ) -> Taken:
        """What was kept of the teacher on these examples, on the device of the inputs.

        inputs, keywords   the teacher's arguments.
        padding            lengths and padded_length. Maps and means of whole examples do not have it: an error.
        examples           positions (B,), or rows of them as the cache gives.

        Raises CacheError for inputs that are not those of the examples.
        """
        if examples is None:
            raise CacheError("examples: expected the positions of the inputs in the data set, for a cached teacher")
        if padding and self._wanted and self.cache.manifest.tap is not None:
            raise CacheError("lengths: expected none, because the cache has maps and means of whole examples; "
                             "write it with taps=None")  # fmt: skip
        rows = examples if isinstance(examples, Mapping) else self.cache[examples]
        absent = [name for name in self.cache.manifest.tensors if name not in rows]
        if absent:
            raise CacheError(f"examples: expected rows of {self.cache.folder}, but they have no {absent[0]}")
        given = [x for x in (*inputs, *keywords.values()) if isinstance(x, Tensor)]
        if given and self.cache.check_inputs and not torch.compiler.is_compiling():
            self._check(rows, given)
        device = given[0].device if given else rows["inputs"].device
        values = [
            [self._item(place, one.tap, rows, device, padding)]
            for place, one in zip(self._places, self._wanted, strict=True)
        ]
        return Taken(self._output(rows, device), values)

    def _item(
        self, place: int, options: Mapping[str, Any] | None, rows: Rows, device: torch.device,
        padding: Mapping[str, Any],
    ) -> Any:  # fmt: skip
        if self.cache.manifest.tap is not None:
            means = (_ALL | dict(options or {}))["means"]
            mean = self._given(f"means.{place}", rows, device) if means else None
            return self._given(f"maps.{place}", rows, device), mean
        feature = self._given(f"features.{place}", rows, device)
        if options is None:
            return feature
        tapped = tap(feature, **options, **padding)
        return tapped.map, tapped.mean

    def _output(self, rows: Rows, device: torch.device) -> Any:
        form = self.cache.manifest.output
        if form in ("", "Tensor"):
            return self._given("output", rows, device) if form else None
        prefix = "output."
        parts = {
            name.removeprefix(prefix): self._given(name, rows, device)
            for name in self.cache.manifest.tensors
            if name.startswith(prefix)
        }
        return parts if form == "dict" else TopK(parts["values"], parts["indices"].long(), parts.get("rest"))

    def _given(self, name: str, rows: Rows, device: torch.device) -> Tensor:
        """In the dtype that the teacher gave."""
        given = dtype_of(self.cache.manifest.tensors[name].given)
        return rows[name].to(device, non_blocking=True).to(given)

    def _check(self, rows: Rows, inputs: Sequence[Any]) -> None:
        found, expected = fingerprints(inputs).cpu(), rows["inputs"].cpu()
        if found.shape != expected.shape:
            raise CacheError(f"examples: expected {len(found)}, one per input, got {len(expected)}")
        other = (found != expected).nonzero()[:, 0].tolist()
        if other:
            example = int(rows["example"][other[0]])
            raise CacheError(
                f"examples: expected inputs that the teacher saw, but that at position {other[0]} of the batch is not "
                f"example {example} ({len(other)} of {len(found)} differ): another data set, order, dtype, "
                "augmentation or padding. TeacherCache(..., check_inputs=False) trusts you"
            )
