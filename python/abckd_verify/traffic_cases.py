"""What `benchmarks.traffic` runs: the ops on features of at least 1 MB, and whole steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from abckd_kernels import backends
from abckd_kernels.ops.compress import common_grid
from abckd_kernels.ops.divergence import KINDS as DIVERGENCES
from abckd_kernels.ops.pointwise import KINDS

from . import compulsory

MEGABYTE = 10**6
DTYPES = ("float32", "bfloat16", "float16", "float64")
LAYOUTS = ("contiguous", "channels_last")
SPECTRA = ("contiguous", "bands_last")  # bands_last: as torch.stft's result lies
EVEN, WIDE = (64, 64, 64), (256, 32, 32)  # (C, T, F)
ODD, FLAT_ODD, LARGE_ODD = (33, 67, 129), (5, 201, 257), (33, 201, 257)  # nothing here divides evenly


@dataclass(frozen=True)
class Case:
    """kind: "tap", "compress", "step" (tap of all layers, then compress), "divergence", "project", "spectral", or
    "pointwise", whose kind begins the name. students, teachers: shapes of features, of maps for compress, of logits
    (outer, classes, inner) for divergence, of bins (B, F, T) for spectral; tap and pointwise take them all as students.
    lengths: valid frames of each sample, of `students[0]`. per_frame: of compress. divergence: its kind.
    """

    kind: str
    name: str
    students: tuple[tuple[int, ...], ...]
    teachers: tuple[tuple[int, ...], ...] = ()
    dtype: str = "float32"
    layout: str = "contiguous"
    means: bool = False
    lengths: tuple[int, ...] | None = None
    per_frame: bool = False
    divergence: str = ""

    def __str__(self) -> str:
        means = "-means" if self.means else ""
        return f"{self.kind}-{self.name}-{self.dtype}-{self.layout}{means}"

    @property
    def describe(self) -> dict:
        """The part of a row that says what was measured."""
        shapes = [list(shape) for shape in (*self.students, *self.teachers)]
        return {
            "id": str(self),
            "case": self.name,
            "dtype": self.dtype,
            "layout": self.layout,
            "shape": shapes[0] if len(shapes) == 1 else shapes,
            "students": len(self.students),
            "means": self.means,
            "lengths": self.lengths,
            "divergence": self.divergence,
        }


def _sized(shape: tuple[int, ...], dtype: str) -> tuple[int, ...]:
    """`shape` with the smallest batch that makes a megabyte."""
    sample = torch.Size(shape).numel() * getattr(torch, dtype).itemsize
    return (-(-MEGABYTE // sample), *shape)


def _tap(name: str, shape: tuple[int, ...], dtype: str, layout: str, means: bool) -> Case:
    return Case("tap", name, (_sized(shape, dtype),), (), dtype, layout, means)


def _project(
    name: str, shape: tuple[int, ...], channels: int, dtype: str, layout: str, lengths: tuple[int, ...] | None = None
) -> Case:
    """`channels` of the teacher."""
    student = _sized(shape, dtype) if lengths is None else (len(lengths), *shape)
    return Case("project", name, (student,), ((student[0], channels, *shape[1:]),), dtype, layout, False, lengths)


def _pointwise(name: str, shape: tuple[int, ...], dtype: str, layout: str) -> Case:
    return Case("pointwise", name, (_sized(shape, dtype),), (), dtype, layout)


def _step(name: str, size: tuple[int, int], dtype: str, layout: str = "contiguous", means: bool = False) -> Case:
    students, teachers = (_sized((channels, *size), dtype) for channels in (32, 64))
    batch = max(students[0], teachers[0])
    layers = ((batch, *students[1:]),) * 3, ((batch, *teachers[1:]),) * 6
    return Case("step", name, *layers, dtype, layout, means)


def _spectral(
    name: str, bins: tuple[int, int], dtype: str, layout: str, lengths: tuple[int, ...] | None = None
) -> Case:  # fmt: skip
    shape = _sized(bins, dtype) if lengths is None else (len(lengths) * 3, *bins)
    return Case("spectral", name, (shape,), (shape,), dtype, layout, lengths=lengths and lengths * 3)


def _divergence(name: str, shape: tuple[int, int, int], kind: str, dtype: str) -> Case:
    return Case("divergence", f"{name} {kind}", (shape,), (shape,), dtype, divergence=kind)


CASES = (
    *(_tap("even", EVEN, dtype, layout, means) for dtype in DTYPES for layout in LAYOUTS for means in (True, False)),
    *(_tap("wide", WIDE, dtype, layout, True) for dtype in ("float32", "bfloat16") for layout in LAYOUTS),
    *(_tap("odd", ODD, dtype, layout, True) for dtype in ("float32", "bfloat16") for layout in LAYOUTS),
    *(_tap("flat odd", FLAT_ODD, "float32", layout, True) for layout in LAYOUTS),
    *(
        Case("tap", "lengths", ((4, 32, 64, 64),), (), dtype, layout, True, (64, 40, 7, 64))
        for dtype in ("float32", "bfloat16")
        for layout in LAYOUTS
    ),
    Case("compress", "even", ((1, 130, 64),) * 2, ((1, 130, 64),) * 3, "float64"),
    Case("compress", "frames", ((1, 130, 64),) * 3, ((1, 130, 64),) * 6, per_frame=True),
    Case("compress", "odd", ((1, 51, 33),) * 2, ((1, 51, 33), (1, 27, 33), (1, 51, 65))),
    Case("compress", "lengths", ((3, 96, 32),) * 2, ((3, 96, 32),) * 2, lengths=(96, 60, 7)),
    Case("compress", "odd lengths", ((3, 101, 33),) * 2, ((3, 101, 33),) * 2, lengths=(101, 60, 7)),
    _step("step", (130, 64), "float32"),
    *(_spectral("even", (256, 200), dtype, layout) for dtype in DTYPES for layout in SPECTRA),
    *(_spectral("odd", (257, 201), dtype, layout) for dtype in ("float32", "bfloat16") for layout in SPECTRA),
    *(_spectral("lengths", (257, 201), "float32", layout, (201, 170, 9)) for layout in SPECTRA),
    *(_divergence("vocabulary", (8, 50257, 1), kind, "float32") for kind in ("kl", "jsd")),
    _divergence("vocabulary", (16, 50264, 1), "reverse_kl", "bfloat16"),
    *(_divergence("mask", (2, 64, 3200), kind, "float32") for kind in ("kl", "jsd")),
    _divergence("mask", (2, 128, 3200), "reverse_kl", "float16"),
    _divergence("rows", (1024, 264, 1), "kl", "float32"),
    _divergence("odd rows", (1024, 521, 1), "jsd", "bfloat16"),
    _divergence("odd mask", (2, 66, 2043), "kl", "float32"),
)
# Ops without CUDA kernels.
TRITON_CASES = (
    *(_pointwise(f"{kind} even", EVEN, "float32", layout) for kind in KINDS for layout in LAYOUTS),
    *(
        _pointwise("heteroscedastic even", EVEN, dtype, layout)
        for dtype in ("bfloat16", "float64")
        for layout in LAYOUTS
    ),
    *(_pointwise("margin odd", ODD, dtype, layout) for dtype in ("float32", "bfloat16") for layout in LAYOUTS),
    *(
        Case("pointwise", "boundary lengths", ((4, 32, 64, 64),), (), dtype, layout, False, (64, 40, 7, 64))
        for dtype in ("float32", "bfloat16")
        for layout in LAYOUTS
    ),
    *(_project("even", (16, 128, 128), 32, "float32", layout) for layout in LAYOUTS),
    _project("odd", (17, 67, 257), 33, "bfloat16", "contiguous"),
    _project("lengths", (16, 160, 64), 32, "float32", "contiguous", (160, 150, 100)),
)
# The emulator is fast enough for more.
EMULATOR_CASES = (
    _step("step", (130, 64), "bfloat16"),
    *(_tap("large odd", LARGE_ODD, dtype, layout, True) for dtype in ("float32", "bfloat16") for layout in LAYOUTS),
    *(_step("step", (130, 64), dtype, "channels_last", True) for dtype in ("float32", "bfloat16")),
    _step("odd step", (67, 129), "float32"),
    _step("odd step", (67, 129), "bfloat16"),
)


def of(backend: str) -> tuple[Case, ...]:
    """The cases that are run for a backend."""
    return (*CASES, *(EMULATOR_CASES if backend == "cuda" else TRITON_CASES))


def run(case: Case) -> Iterator[tuple[str, Callable[[], int]]]:
    """The case's ops in order: (name, function that runs it and returns its compulsory bytes)."""
    lengths = None if case.lengths is None else torch.tensor(case.lengths)
    padding = (lengths, case.students[0][1 if case.kind == "compress" else 2])
    return _RUN[case.kind](case, padding)


def _run_compress(case: Case, padding: tuple) -> Iterator[tuple[str, Callable[[], int]]]:
    maps = [torch.rand(shape, dtype=getattr(torch, case.dtype)) for shape in (*case.students, *case.teachers)]
    return _compress(maps, len(case.students), padding, {}, case.per_frame)


def _run_taps(case: Case, padding: tuple) -> Iterator[tuple[str, Callable[[], int]]]:
    """With compress between the ways, where that makes a step."""
    features = [_feature(shape, case) for shape in (*case.students, *case.teachers)]
    made = {}

    def tap_forward() -> int:
        made["maps"], made["means"] = _kernel("tap_forward")(features, 2, case.means, *padding)
        return compulsory.tap_forward(features, made["maps"], made["means"], *padding)

    yield "tap_forward", tap_forward
    n = len(case.students)
    if case.kind == "step":
        yield from _compress(made["maps"], n, padding, made)
    students = features[:n]
    # In a network every student feature has another reader, whose gradient arrives with ours.
    grads = [torch.ones_like(x) for x in students]
    map_grads = made.get("map_grads", made["maps"])
    mean_grads = made["means"][:n] or [None] * n

    def tap_backward() -> int:
        results = _kernel("tap_backward")(grads, students, map_grads, mean_grads, 2, *padding)
        return compulsory.tap_backward(grads, students, map_grads, mean_grads, results, *padding)

    yield "tap_backward", tap_backward


def _run_pointwise(case: Case, padding: tuple) -> Iterator[tuple[str, Callable[[], int]]]:
    name, made = case.name.split()[0], {}
    features = [_feature(case.students[0], case) for _ in range(2 + KINDS[name].third)]
    wide = torch.float64 if case.dtype == "float64" else torch.float32
    per_channel = -torch.rand(case.students[0][1], dtype=wide) if KINDS[name].per_channel else None
    student, teacher, third = (*features, None)[:3]
    operands = student, teacher, third, per_channel, name, KINDS[name].parameter or 0.0, *padding

    def forward() -> int:
        made["sums"] = _kernel("pointwise_forward")(*operands)
        return compulsory.pointwise_forward(features, per_channel, made["sums"], *padding)

    def backward() -> int:
        results = _kernel("pointwise_backward")(made["sums"], *operands)
        return compulsory.pointwise_backward(made["sums"], features, per_channel, results, *padding)

    yield "pointwise_forward", forward
    yield "pointwise_backward", backward


def _run_project(case: Case, padding: tuple) -> Iterator[tuple[str, Callable[[], int]]]:
    """One teacher and a bias; every gradient that there is."""
    student, teacher = (_feature(shapes[0], case) for shapes in (case.students, case.teachers))
    weight, bias, made = torch.rand(teacher.shape[1], student.shape[1]), torch.rand(teacher.shape[1]), {}
    operands = student, weight, [teacher], bias, None, *padding

    def forward() -> int:
        made["errors"] = _kernel("project_forward")(*operands)
        return compulsory.project_forward([student, teacher], [weight, bias], made["errors"], *padding)

    def backward() -> int:
        results = _kernel("project_backward")(made["errors"], *operands, [True, True, True, False])
        return compulsory.project_backward(made["errors"], [student, teacher], [weight, bias], results, *padding)

    yield "project_forward", forward
    yield "project_backward", backward


def _compress(
    maps: list[Tensor], n: int, padding: tuple, made: dict, per_frame: bool = False
) -> Iterator[tuple[str, Callable[[], int]]]:
    students, teachers = maps[:n], maps[n:]
    grid = common_grid(maps, None)

    def forward() -> int:
        options = (None, None, grid, per_frame, 0.1)
        made["results"] = _kernel("compress_forward")(students, teachers, *options, *padding, True)
        return compulsory.compress_forward(maps, made["results"], *padding)

    def backward() -> int:
        distances, attention, attention_grads, on_grid = made["results"]
        sizes = [size for x in students for size in x.shape[1:]]
        operands = distances, None, attention, attention_grads, on_grid, sizes, *padding, [True, False]
        made["map_grads"], _ = _kernel("compress_backward")(*operands)
        return compulsory.compress_backward(distances, on_grid, made["map_grads"], padding[0])

    yield "compress_forward", forward
    yield "compress_backward", backward


def _run_spectral(case: Case, padding: tuple) -> Iterator[tuple[str, Callable[[], int]]]:
    spectra = [torch.rand((*shape, 2)).to(getattr(torch, case.dtype)) for shape in (*case.students, *case.teachers)]
    if case.layout == "bands_last":
        spectra = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in spectra]
    made = {}

    def forward() -> int:
        made["errors"] = _kernel("spectral_forward")(*spectra, 0.3, 1e-12, *padding)
        return compulsory.spectral_forward(spectra, made["errors"], *padding)

    def backward() -> int:
        result = _kernel("spectral_backward")(*made["errors"], *spectra, 0.3, 1e-12, *padding)
        return compulsory.spectral_backward(spectra, made["errors"], result, *padding)

    yield "spectral_forward", forward
    yield "spectral_backward", backward


def _run_divergence(case: Case, _: tuple) -> Iterator[tuple[str, Callable[[], int]]]:
    student, teacher = (torch.randn(shape).to(getattr(torch, case.dtype)) for shape in (*case.students, *case.teachers))
    options, made = (DIVERGENCES.index(case.divergence), 0.5, 2.0, None), {}

    def forward() -> int:
        made["results"] = _kernel("divergence_forward")(student, teacher, None, *options, True)
        return compulsory.divergence_forward(student, teacher, *made["results"])

    def backward() -> int:
        values, saved = made["results"]
        result = _kernel("divergence_backward")(values, student, teacher, saved, *options)
        return compulsory.divergence_backward(values, student, teacher, saved, result)

    yield "divergence_forward", forward
    yield "divergence_backward", backward


_RUN = {
    "compress": _run_compress,
    "divergence": _run_divergence,
    "pointwise": _run_pointwise,
    "project": _run_project,
    "spectral": _run_spectral,
    "step": _run_taps,
    "tap": _run_taps,
}


def _feature(shape: tuple[int, ...], case: Case) -> Tensor:
    x = torch.rand(shape).to(getattr(torch, case.dtype))
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if case.layout == "channels_last" else x


def _kernel(op: str) -> Callable:
    return backends.kernel(op, torch.device("cpu"))
