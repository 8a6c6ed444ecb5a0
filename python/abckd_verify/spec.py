"""What there is to know of an op beside its code: one Spec, from which every check of it follows.

A Spec speaks in the names of the op's two schemas (abckd_kernels.ops.contract). Its cases are options of `arguments`,
which makes what the forward kernel takes; what backward takes follows from the contract (running.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from abckd_kernels.ops.contract import CONTRACTS, Contract

from . import inputs

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {layout.__name__: layout for layout in inputs.LAYOUTS}
AS_THEY_LIE = ("contiguous", "channels_last")  # that kernels read without a copy


def bands_last(x: Tensor) -> Tensor:
    """Pairs (B, F, T, 2) as torch.stft's result lies."""
    return x.transpose(-3, -2).contiguous().transpose(-3, -2)


LAYOUTS["bands_last"] = bands_last


@dataclass(frozen=True)
class Case:
    """One call of an op: the options of its Spec's `arguments`, a dtype and a layout."""

    name: str
    dtype: torch.dtype
    layout: str
    options: dict = field(hash=False)

    def __str__(self) -> str:
        return f"{self.name}-{inputs.name_of(self.dtype)}-{self.layout}"

    def sized(self, batch: int) -> Case:
        """The same with another batch."""
        return replace(self, options=self.options | {"batch": batch})


def cases(name: str, dtypes: Sequence[torch.dtype], layouts: Sequence[str] = ("contiguous",), **options) -> list[Case]:
    """A case for each dtype and layout."""
    return [Case(name, dtype, layout, options) for dtype, layout in itertools.product(dtypes, layouts)]


class Make:
    """The tensors of a case.

    values   "exact": what numerics are checked on, always the same; "random": made on the device, of any size;
             "empty": memory, or none on the device "meta".
    """

    def __init__(self, case: Case, device: str | torch.device = "cpu", values: str = "exact"):
        self.case, self.device, self.values, self._seed = case, torch.device(device), values, itertools.count()

    @property
    def wide(self) -> torch.dtype:
        """In which the op sums."""
        return torch.float64 if self.case.dtype == torch.float64 else torch.float32

    def feature(self, *shape: int) -> Tensor:
        """Normal numbers (B, C, ...) in the case's dtype and layout."""
        seed = next(self._seed)
        x = self._other(shape, self.case.dtype)
        if x is None:
            x = inputs.feature(shape, self.case.dtype, seed).to(self.device)
        return LAYOUTS[self.case.layout](x)

    def logits(self, *shape: int) -> Tensor:
        """Normal numbers, three times as large, in the case's dtype."""
        return self.numbers(*shape, dtype=self.case.dtype, scale=3.0)

    def numbers(self, *shape: int, dtype: torch.dtype | None = None, scale: float = 1.0) -> Tensor:
        """Normal numbers, by default in the dtype of sums: parameters."""
        dtype = dtype or self.wide
        generator = torch.Generator().manual_seed(1000 + next(self._seed))
        x = self._other(shape, dtype)
        if x is None:
            x = (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(self.device, dtype)
        return x

    def flags(self, *shape: int) -> Tensor:
        """Every third true."""
        return (torch.arange(torch.Size(shape).numel(), device=self.device) % 3 == 1).view(shape)

    def lengths(self, lengths: Sequence[int] | None) -> Tensor | None:
        return None if lengths is None else torch.tensor(lengths, device=self.device)

    def _other(self, shape, dtype) -> Tensor | None:
        if self.values == "exact":
            return None
        make = torch.empty if self.values == "empty" else torch.randn
        return make(shape, dtype=dtype, device=self.device)


@dataclass(frozen=True)
class Spec:
    """An op.

    name         of the op, a key of CONTRACTS.
    arguments    (make, batch=..., **options) to what forward takes, by name, but `gradients`.
    exact        of the arguments in NumPy float64: the results in the contract's order, without what passes through.
    plain        the same in PyTorch, as anybody would write it, differentiable, in the features' own dtype or that of
                 sums. Its gradient in float64 is the exact one: tests hold it against differences of `exact`.
    cases        for numerics: every dtype and layout, small.
    compiled     of the size of a noise suppressor: what kernels are compiled for.
    traffic      what bytes are counted on: a megabyte, less where the interpreter would take minutes. The first of them
                 stands for the op in predictions.
    timed        one sample each, of real size; the batch follows from the device's cache.
    launches     kernels by backend ("triton": functions of its triton.py, "cuda": of csrc/cuda), forward and backward.
    framed       {argument: its axis of frames}: of these, only valid frames are needed.
    unread       arguments that backward is given and need not read.
    through      {result: argument}: the result has a gradient where the argument is given.
    gates        of (direction, case) to {ratio of a traffic row: the most it may be} (traffic.py).
    condition    of the arguments to how much the problem enlarges rounding errors (exact/accuracy.py).
    wide_results results are summed in float32, stored in float64: their accuracy is that of the sums.
    """

    name: str
    arguments: Callable[..., dict]
    exact: Callable[..., Sequence]
    plain: Callable[..., Sequence]
    cases: tuple[Case, ...]
    compiled: tuple[Case, ...]
    traffic: tuple[Case, ...]
    timed: tuple[Case, ...]
    launches: dict[str, tuple[str, ...]]
    gates: Callable[[str, Case], dict[str, float]]
    framed: dict[str, int] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    through: dict[str, str] = field(default_factory=dict)
    condition: Callable[[dict], float] = lambda arguments: 1.0
    wide_results: bool = False

    @property
    def contract(self) -> Contract:
        return CONTRACTS[self.name]

    def make(self, case: Case, device: str | torch.device = "cpu", values: str = "exact") -> dict:
        """The case's arguments by name."""
        return self.arguments(Make(case, device, values), **case.options)

    def sized(self, case: Case, least: int) -> Case:
        """The case, where it has no batch with the smallest for which its largest argument has `least` bytes."""
        if "batch" in case.options:
            return case
        sample = max(x.nbytes for x in tensors(self.make(case.sized(1), "meta", "empty").values()))
        return case.sized(-(-least // sample))


def tensors(values) -> list[Tensor]:
    """All tensors among values and in their lists."""
    flat = itertools.chain.from_iterable(x if isinstance(x, list | tuple) else [x] for x in values)
    return [x for x in flat if isinstance(x, Tensor)]


MEGABYTE = 10**6
LIMIT = 1.05


def gate(ratio: str) -> Callable[[str, Case], dict[str, float]]:
    """One ratio, both ways, at most LIMIT."""
    return lambda direction, case: {ratio: LIMIT}
