"""One Spec per op of the library."""

from importlib import import_module

from abckd_kernels.ops.contract import CONTRACTS

from ..spec import Spec

SPECS: dict[str, Spec] = {name: import_module(f"{__name__}.{name}").SPEC for name in CONTRACTS}
