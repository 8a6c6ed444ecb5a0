"""Bytes that Triton kernels load and store, counted in Triton's interpreter (TRITON_INTERPRET=1, on CPU tensors).

Every load and store of the interpreter, whatever its form (plain, masked, block pointer, tensor descriptor), ends in
one of two functions of its builder, with an address and a mask per element. Here they are wrapped, as are atomics,
which load and store.
"""

from __future__ import annotations

import contextlib
import functools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SECTOR = 32  # bytes, the unit in which a GPU's memory is read


class NotCounted(RuntimeError):
    """A backend's kernels can't be counted here; the message says why."""


@dataclass
class Traffic:
    """What one kernel moved, summed over its launches.

    loaded, stored: bytes that elements asked for, masked ones left out; an element that is asked for twice counts
    twice. unique_loaded, unique_stored: bytes of the distinct sectors of each launch: what would still have to be
    fetched and written with a cache as large as everything.
    """

    launches: int = 0
    loaded: int = 0
    stored: int = 0
    unique_loaded: int = 0
    unique_stored: int = 0

    @property
    def moved(self) -> int:
        return self.loaded + self.stored


class Counter:
    """Traffic per kernel, named <folder of its op>.<function>."""

    def __init__(self):
        self.kernels: dict[str, Traffic] = defaultdict(Traffic)
        self._sectors: dict[str, list[np.ndarray]] = {}
        self._current: Traffic | None = None

    def access(self, kind: str, pointers, mask) -> None:
        """Count one load ("loaded") or store ("stored") of the running launch."""
        # The interpreter gives some masks as numbers, which would index and not select.
        inside = np.broadcast_to(np.asarray(mask.data, bool), pointers.data.shape)
        addresses = pointers.data[inside].astype(np.uint64)
        size = max(pointers.get_element_ty().primitive_bitwidth // 8, 1)
        self._add(kind, addresses.size * size)
        last_byte = addresses + np.uint64(size - 1)  # a misaligned element may end in the next sector
        self._sectors[kind].append(np.unique(np.concatenate([addresses, last_byte]) // np.uint64(SECTOR)))

    @contextlib.contextmanager
    def launch(self, name: str) -> Iterator[None]:
        self._current = self.kernels[name]
        self._current.launches += 1
        self._sectors = {"loaded": [], "stored": []}
        try:
            yield
        finally:
            for kind, sectors in self._sectors.items():
                if sectors:
                    self._add(f"unique_{kind}", SECTOR * np.unique(np.concatenate(sectors)).size)

    def _add(self, name: str, size: int) -> None:
        setattr(self._current, name, getattr(self._current, name) + size)


@contextlib.contextmanager
def counting() -> Iterator[Counter]:
    """Count what kernels move in this block.

    Raises NotCounted without Triton, without TRITON_INTERPRET=1, or if this Triton has another interpreter.
    """
    try:
        import triton
        from triton.runtime import interpreter
    except ImportError as error:
        raise NotCounted(f"triton is not installed: {error}") from error

    if not triton.knobs.runtime.interpret:
        raise NotCounted("Triton's kernels are counted in its interpreter: set TRITON_INTERPRET=1 before the start")
    counter = Counter()
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor

    def counted(function, *kinds: str, mask: int | None):
        @functools.wraps(function)
        def wrapper(self, *args, **options):
            pointers = args[1] if function.__name__ == "create_atomic_rmw" else args[0]
            everywhere = interpreter.TensorHandle(np.ones(pointers.data.shape, bool), interpreter.tl.int1)
            for kind in kinds:
                counter.access(kind, pointers, everywhere if mask is None else args[mask])
            return function(self, *args, **options)

        return wrapper

    def named(function):
        @functools.wraps(function)
        def wrapper(self, *args, **options):
            with counter.launch(kernel_name(self.fn)):
                return function(self, *args, **options)

        return wrapper

    patches = {
        (builder, "create_masked_load"): lambda f: counted(f, "loaded", mask=1),
        (builder, "create_masked_store"): lambda f: counted(f, "stored", mask=2),
        (builder, "create_atomic_rmw"): lambda f: counted(f, "loaded", "stored", mask=3),
        (builder, "create_atomic_cas"): lambda f: counted(f, "loaded", "stored", mask=None),
        (executor, "__call__"): named,
    }
    missing = [name for owner, name in patches if not hasattr(owner, name)]
    if missing:
        raise NotCounted(f"the interpreter of triton {triton.__version__} has no {', '.join(missing)} to count at")
    originals = {place: getattr(*place) for place in patches}
    try:
        for place, patch in patches.items():
            setattr(*place, patch(originals[place]))
        yield counter
    finally:
        for place, original in originals.items():
            setattr(*place, original)


def kernel_name(function) -> str:
    """tap.forward_kernel for forward_kernel in abckd_kernels/ops/tap/triton.py."""
    folder = function.__module__.split(".")[-2:-1]
    return ".".join([*folder, function.__name__])
