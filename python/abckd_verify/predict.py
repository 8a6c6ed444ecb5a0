"""`python -m abckd_verify.predict`: how long GPU kernels should take, from counted bytes and machine code, without a GPU.

Every time is predicted, none is measured. Per op, with t_launch = 3 us assumed for each kernel:

    t        = kernels * t_launch + max(t_memory, t_issue, t_double)
    t_memory = bytes / bandwidth
    t_issue  = warp instructions / (multiprocessors * 4 schedulers * clock)
    t_double = (conversions / conversion rate + fused multiply-adds / double rate) / (multiprocessors * clock)

    bytes             = fewest possible bytes * (unique / fewest), as counted on a small batch
    warp instructions = loaded bytes / (32 lanes * 16 bytes) * instructions of the inner loop per load of 16 bytes

Counts are those of abckd_verify/traffic.py, where unique is what memory carries if the cache keeps what an op reads
again; instructions are those of abckd_verify/resources.py, of the hungriest kernel of an op. It is a bound and no
estimate: it takes for granted that enough loads are in flight, that clocks hold, and that no feature is in the cache
when an op begins. Where the inner loop has no load of 16 bytes, t_issue isn't known and left out. t_double is that of
CUDA's compress_forward, which sums in float64: per cell two conversions and one multiply-add for each inner product,
one of each for each map that a gradient is made of.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from . import compulsory, markdown, traffic
from .machines import compiled_cuda
from .machines.compiled import Kernel, ToolMissing
from .machines.interpreter_counter import NotCounted
from .machines.occupancy import SCHEDULERS

LAUNCH = 3e-6
BYTES_PER_WARP_LOAD = 32 * 16
STUDENTS, TEACHERS = (3, 32), (6, 64)  # layers, channels
SIZES = ((8, 200, 64), (64, 200, 64))  # (B, T, F)
DTYPES = ("float32", "bfloat16")
OPS = ("tap_forward", "compress_forward", "compress_backward", "tap_backward")


@dataclass(frozen=True)
class GPU:
    """bandwidth: bytes/s. clock: boost, Hz. arch: whose code is inspected. doubles, conversions: float64 multiply-adds,
    and conversions to float64, per clock and multiprocessor (throughput table of the CUDA programming guide). source:
    where the other figures are from.
    """

    bandwidth: float
    multiprocessors: int
    clock: float
    arch: str
    doubles: int
    conversions: int
    source: str


GPUS = {
    "H100": GPU(
        3.35e12, 132, 1.98e9, "sm_90", 64, 16, "NVIDIA H100 data sheet, SXM5; clock: 67 TFLOPS / (132 * 128 lanes * 2)"
    ),
    "A100": GPU(2.039e12, 108, 1.41e9, "sm_80", 32, 16, "NVIDIA A100 data sheet, 80 GB SXM; clock: white paper"),
    "RTX4090": GPU(
        1.008e12, 128, 2.52e9, "sm_86", 2, 2, "NVIDIA Ada white paper, RTX 4090; code of sm_86 stands for sm_89"
    ),
}


@dataclass(frozen=True)
class Prediction:
    """Seconds, all of them predicted. issue is None where the inner loop of the path that runs isn't known."""

    gpu: str
    backend: str
    op: str
    dtype: str
    size: tuple[int, ...]
    bytes: float
    launches: int
    memory: float
    issue: float | None
    double: float

    @property
    def launch(self) -> float:
        return self.launches * LAUNCH

    @property
    def total(self) -> float:
        return self.launch + max(self.memory, self.issue or 0, self.double)

    @property
    def bound(self) -> str:
        """The largest of the terms."""
        terms = {"memory": self.memory, "issue": self.issue or 0, "double": self.double, "launch": self.launch}
        return max(terms, key=terms.get)


def predict(row: dict, gpu: str, kernels: list[Kernel], dtype: str, size: tuple[int, ...]) -> Prediction:
    """The time of a traffic row's op at another size. kernels: those of the row's backend, for the GPU."""
    place = GPUS[gpu]
    fewest = fewest_bytes(row["op"], dtype, size)
    names = row["kernel"].split(" + ")
    used = [kernel for name in names for kernel in _matching(name, row, kernels)]
    per_load = [kernel.instructions_per_load for kernel in used]
    issue = None
    if used and all(per_load):
        loaded = fewest * row.get("loaded", row["moved"]) / row["compulsory"]
        issue = loaded / BYTES_PER_WARP_LOAD * max(per_load) / (place.multiprocessors * SCHEDULERS * place.clock)
    carried = fewest * row["unique"] / row["compulsory"]
    memory = carried / place.bandwidth
    double = double_seconds(place, size) if (row["backend"], row["op"]) == ("cuda", "compress_forward") else 0.0
    return Prediction(gpu, row["backend"], row["op"], dtype, size, carried, len(names), memory, issue, double)


def double_seconds(place: GPU, size: tuple[int, ...]) -> float:
    """Time of the float64 arithmetic in CUDA's compress_forward, without pooling."""
    batch, frames, bands = size
    (n, _), (m, _) = STUDENTS, TEACHERS
    products = n * (m + 1) + m * (m + 1) // 2
    conversions = 2 * products + n + m
    multiply_adds = products + n * (m + 1)
    cycles = batch * frames * bands * (conversions / place.conversions + multiply_adds / place.doubles)
    return cycles / (place.multiprocessors * place.clock)


def fewest_bytes(op: str, dtype: str, size: tuple[int, ...]) -> int:
    """Compulsory bytes of one op of a step without means or lengths, whose maps are float32."""
    batch, *grid = size

    def empty(*shape: int, kind: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=kind, device="meta")

    (n, student_channels), (m, teacher_channels) = STUDENTS, TEACHERS
    students = [empty(batch, student_channels, *grid, kind=getattr(torch, dtype)) for _ in range(n)]
    teachers = [empty(batch, teacher_channels, *grid, kind=getattr(torch, dtype)) for _ in range(m)]
    maps = [empty(batch, *grid) for _ in range(n + m)]
    distances, attention, on_grid = empty(batch, n), empty(batch, n, m), empty(batch, n, *grid)
    if op == "tap_forward":
        return compulsory.tap_forward([*students, *teachers], maps, [])
    if op == "tap_backward":
        return compulsory.tap_backward(students, students, maps[:n], [], students)
    if op == "compress_forward":
        return compulsory.compress_forward(maps, [distances, attention, attention, on_grid])
    return compulsory.compress_backward(distances, on_grid, maps[:n])


def _matching(name: str, row: dict, kernels: list[Kernel]) -> list[Kernel]:
    """The compiled kernels that a name in a traffic row stands for."""
    if row["backend"] == "cuda":
        base, _, variant = compiled_cuda.short(name).partition("<")
        wanted = variant.removesuffix(">") or "-"
        return [kernel for kernel in kernels if (kernel.name, kernel.variant) == (base, wanted)]
    case = "per sample, on the grid"
    if name.startswith("tap"):
        case = f"{row['dtype']}, {row['layout']}{', means and lengths' * row['means']}"
    found = [kernel for kernel in kernels if kernel.name == name]
    return [kernel for kernel in found if kernel.variant == case or kernel.variant.startswith(f"{case}, tile")]


def kernels_for(backend: str, arch: str) -> list[Kernel]:
    """Raises ToolMissing."""
    if backend == "cuda":
        if missing := compiled_cuda.missing():
            raise ToolMissing(missing)
        return [kernel for future in compiled_cuda.build_all((arch,)).values() for kernel in future.result()]
    from .machines import compiled_triton

    target = next(target for target in compiled_triton.TARGETS if f"sm_{target.arch}" == arch)
    cases = [*(f"{dtype}, contiguous" for dtype in DTYPES), "per sample, on the grid"]
    return [kernel for case in cases for kernel in compiled_triton.inspect_case(case, target)]


def table(predictions: list[Prediction]) -> str:
    """In Markdown. Steps are sums of their ops."""
    titles = ("backend", "op", "dtype", "B x T x F", "predicted MB", "predicted us", "predicted memory us",
              "predicted issue us", "predicted double us", "assumed launch us", "bound by")  # fmt: skip
    rows = []
    for one in predictions:
        issue = "-" if one.issue is None else f"{one.issue * 1e6:.1f}"
        what = (one.backend, one.op, one.dtype, " x ".join(map(str, one.size)), f"{one.bytes / 1e6:.1f}")
        times = (f"{one.total * 1e6:.1f}", f"{one.memory * 1e6:.1f}", issue, f"{one.double * 1e6:.1f}")
        rows.append([*what, *times, f"{one.launch * 1e6:.0f}", one.bound])
    return markdown.table(titles, rows)


def steps(predictions: list[Prediction]) -> str:
    """Predicted time of a whole step: forward and backward of all its ops."""
    totals: dict[tuple, float] = {}
    for one in predictions:
        key = one.backend, one.dtype, one.size
        totals[key] = totals.get(key, 0) + one.total
    rows = [
        [backend, dtype, " x ".join(map(str, size)), f"{total * 1e6:.1f}"]
        for (backend, dtype, size), total in totals.items()
    ]
    return markdown.table(["backend", "dtype", "B x T x F", "whole step, predicted us"], rows)


def _size(text: str) -> tuple[int, ...]:
    sizes = tuple(int(part) for part in text.split(","))
    if len(sizes) != 3 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"expected B,T,F, for instance 8,200,64, got {text!r}")
    return sizes


def counted(backend: str) -> dict[tuple[str, str], dict]:
    """Traffic rows of contiguous features without means, by op and dtype. Raises NotCounted."""
    rows = {}
    for dtype in DTYPES:
        # A whole step where it is counted, else tap alone: maps are float32 whatever features are.
        for case in ("step-step", "tap-even"):
            found = [row for row in traffic.measure(backend, f"{case}-{dtype}-contiguous") if not row["means"]]
            for row in found:
                rows.setdefault((row["op"], dtype), row)
            if found:
                break
    return {(op, dtype): rows.get((op, dtype)) or rows[op, DTYPES[0]] for op in OPS for dtype in DTYPES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0].replace("`", ""))
    parser.add_argument("--gpu", choices=GPUS, action="append", help="which (repeatable; default: all)")
    parser.add_argument("--backend", choices=traffic.BACKENDS, action="append", help="which (repeatable; default: all)")
    parser.add_argument(
        "--size", type=_size, action="append", help="B,T,F (repeatable; default: 8,200,64 and 64,200,64)"
    )
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args()

    print(__doc__.partition("\n\n")[2])
    print(f"student {STUDENTS[0]} x (B, {STUDENTS[1]}, T, F), teacher {TEACHERS[0]} x (B, {TEACHERS[1]}, T, F)\n")
    rows, everything = {}, []
    for backend in options.backend or traffic.BACKENDS:
        try:
            rows[backend] = counted(backend)
        except NotCounted as error:
            print(f"{backend}: not predicted, {error}\n")
    for name in options.gpu or GPUS:
        gpu = GPUS[name]
        print(
            f"## {name}: {gpu.bandwidth / 1e12:.3f} TB/s, {gpu.multiprocessors} multiprocessors, "
            f"{gpu.clock / 1e9:.2f} GHz, code of {gpu.arch} ({gpu.source})\n"
        )
        predictions = []
        for backend, of_backend in rows.items():
            try:
                kernels = kernels_for(backend, gpu.arch)
            except (ToolMissing, ImportError) as error:
                print(f"{backend}: not predicted, {error}\n")
                continue
            predictions += [
                predict(of_backend[op, dtype], name, kernels, dtype, size)
                for size in options.size or SIZES
                for dtype in DTYPES
                for op in OPS
            ]
        print(f"{table(predictions)}\n\n{steps(predictions)}\n")
        everything += [asdict(one) | {"predicted_seconds": one.total, "bound": one.bound} for one in predictions]
    if options.json:
        Path(options.json).write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
