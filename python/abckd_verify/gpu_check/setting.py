"""Where items run."""

from __future__ import annotations

from dataclasses import dataclass

from abckd_kernels import backends

from ..ops import SPECS

PLANNED = "planned"  # the device of a dry run
DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True)
class Setting:
    """device: "cuda", or "cpu" in a rehearsal: then what needs a GPU is skipped."""

    device: str

    @property
    def is_gpu(self) -> bool:
        return self.device != "cpu"

    def backends(self) -> list[str]:
        """Those that serve an op at least, in the library's order; the reference only where no GPU is."""
        names = [name for name in backends.PREFERENCE if name != "reference" or not self.is_gpu]
        return [name for name in names if any(serves(name, op, self.device) for op in SPECS)]


def serves(backend: str, op: str, device: str) -> bool:
    """Whether a backend has the op on a device; on that of a dry run, where this version has kernels for it."""
    if backend == "auto":
        return True
    if device == PLANNED:
        return backend in SPECS[op].launches
    return all(backends.why_not(f"{op}_{direction}", backend, device) is None for direction in DIRECTIONS)
