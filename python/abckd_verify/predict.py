"""`python -m abckd_verify.predict`: how long GPU kernels should take, from counted bytes and machine code, no GPU.

Every time is predicted, none is measured. Per op and direction, with t_launch = 3 us assumed for each kernel:

    t        = kernels * t_launch + max(t_memory, t_issue, t_double)
    t_memory = bytes / bandwidth
    t_issue  = warp instructions / (multiprocessors * 4 schedulers * clock)
    t_double = (conversions / conversion rate + fused multiply-adds / double rate) / (multiprocessors * clock)

    bytes             = fewest possible bytes * (unique / fewest), as counted on the first of the Spec's `traffic` cases
    warp instructions = loaded bytes / (warp's lanes * 16 bytes) * instructions of the inner loop per load of 16 bytes

of each Spec's `timed` cases in float32 and bfloat16, contiguous, in a batch. Counts are those of abckd_verify.traffic,
where unique is what memory carries if the cache keeps what an op reads again; instructions are those of
abckd_verify.resources, of the hungriest kernel that the op launches for its own compiled cases. It is a bound and no
estimate: it takes for granted that enough loads are in flight, that clocks hold, and that nothing is in the cache when
an op begins. Products on matrix units (gram, project) are not in it. Where no inner loop has a load of 16 bytes,
t_issue isn't known and left out. t_double is that of CUDA's compress_forward, which sums in float64: per cell two
conversions and one multiply-add for each inner product, one of each for each map that a gradient is made of.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from . import markdown, traffic
from .machines import compiled_cuda
from .machines.compiled import Kernel, ToolMissing
from .machines.interpreter_counter import NotCounted
from .machines.occupancy import SCHEDULERS
from .ops import SPECS
from .running import Run
from .spec import Case, Spec

LAUNCH = 3e-6
BATCH = 64
DTYPES = (torch.float32, torch.bfloat16)
DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True)
class GPU:
    """bandwidth: bytes/s. clock: boost, Hz. arch: whose code is inspected. doubles, conversions: float64 multiply-adds,
    and conversions to float64, per clock and multiprocessor (throughput table of the CUDA programming guide; for MI300X
    derived from its peak rate). lanes: of a warp. source: where the other figures are from.
    """

    bandwidth: float
    multiprocessors: int
    clock: float
    arch: str
    doubles: int
    conversions: int
    source: str
    lanes: int = 32

    @property
    def runs(self) -> tuple[str, ...]:
        """Backends whose kernels it can run."""
        return ("triton",) if self.arch.startswith("gfx") else ("cuda", "triton")


GPUS = {
    "H100": GPU(
        3.35e12, 132, 1.98e9, "sm_90", 64, 16, "NVIDIA H100 data sheet, SXM5; clock: 67 TFLOPS / (132 * 128 lanes * 2)"
    ),
    "H200": GPU(4.8e12, 132, 1.98e9, "sm_90", 64, 16, "NVIDIA H200 data sheet, SXM; clock: 67 TFLOPS as H100"),
    "B200": GPU(
        8e12, 148, 1.95e9, "sm_100", 64, 16,
        "NVIDIA DGX B200 data sheet: 64 TB/s of 8 GPUs; clock: 37 TFLOPS in float64 / (148 * 64 lanes * 2)",
    ),
    "RTX5090": GPU(
        1.792e12, 170, 2.407e9, "sm_120", 2, 2,
        "NVIDIA RTX Blackwell white paper, GeForce RTX 5090: 1792 GB/s, 2407 MHz",
    ),
    "MI300X": GPU(
        5.3e12, 304, 2.1e9, "gfx942", 64, 16, "AMD Instinct MI300X data sheet: 5.3 TB/s, 304 compute units, 2100 MHz",
        lanes=64,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Prediction:
    """Seconds, all of them predicted. issue is None where the inner loop of the path that runs isn't known."""

    gpu: str
    backend: str
    op: str
    case: str
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


def predict(spec: Spec, case: Case, direction: str, gpu: str, row: dict, per_load: float | None) -> Prediction:
    """One direction of an op on a case, from a row of its traffic and instructions per load of 16 bytes."""
    place = GPUS[gpu]
    fewest = fewest_bytes(spec, case, direction)
    issue = None
    if per_load:
        loaded = fewest * row.get("loaded", row["moved"]) / row["compulsory"]
        warp_loads = loaded / (16 * place.lanes)
        issue = warp_loads * per_load / (place.multiprocessors * SCHEDULERS * place.clock)
    carried = fewest * row["unique_ratio"]
    double = double_seconds(place, case) if (row["backend"], row["op"]) == ("cuda", "compress_forward") else 0.0
    launches = len(row["kernel"].split(" + "))
    return Prediction(
        gpu, row["backend"], row["op"], str(case), carried, launches, carried / place.bandwidth, issue, double
    )


def double_seconds(place: GPU, case: Case) -> float:
    """Time of the float64 arithmetic in CUDA's compress_forward, without pooling."""
    n, m = (len(case.options[side]) for side in ("students", "teachers"))
    cells = case.options["batch"] * torch.Size(case.options["students"][0]).numel()
    products = n * (m + 1) + m * (m + 1) // 2
    conversions, multiply_adds = 2 * products + n + m, products + n * (m + 1)
    cycles = cells * (conversions / place.conversions + multiply_adds / place.doubles)
    return cycles / (place.multiprocessors * place.clock)


def fewest_bytes(spec: Spec, case: Case, direction: str) -> int:
    """Compulsory bytes, of tensors without data."""
    run = Run(spec, spec.make(case, "meta", "empty"), lambda name: getattr(torch.ops.abckd, name).default)
    run.forward()
    if direction == "backward":
        run.backward()
    return run.bytes(direction)


def predicted(batch: int = BATCH) -> list[tuple[Spec, Case]]:
    """What is predicted: the timed cases of the DTYPES, contiguous."""
    return [
        (spec, case.sized(batch))
        for spec in SPECS.values()
        for case in spec.timed
        if case.dtype in DTYPES and case.layout == "contiguous"
    ]


def counted(backend: str) -> dict[str, dict]:
    """A traffic row for each op and direction: of the first case. Raises NotCounted."""
    rows: dict[str, dict] = {}
    for spec in SPECS.values():
        if backend in spec.launches:
            for row in traffic.measure(backend, f"{spec.name}-{spec.traffic[0]}"):
                rows.setdefault(row["op"], row)
    return rows


def instructions(backend: str, arch: str) -> dict[tuple[str, str], float]:
    """Of (op, direction): the most instructions per load of 16 bytes of any kernel. Raises ToolMissing."""
    if backend == "cuda":
        if missing := compiled_cuda.missing():
            raise ToolMissing(missing)
        kernels = [kernel for future in compiled_cuda.build_all((arch,)).values() for kernel in future.result()]
        return hungriest(kernels, lambda name: name.partition("_")[0])
    from .machines import compiled_triton

    target = next(x for x in compiled_triton.TARGETS if arch in (f"sm_{x.arch}", x.arch))
    cases = [(spec, case) for spec, case in compiled_triton.cases(target) if case == spec.compiled[0]]
    kernels = [kernel for spec, case in cases for kernel in compiled_triton.inspect_case(spec, case, target)]
    return hungriest(kernels, lambda name: name.partition(".")[0])


def hungriest(kernels: list[Kernel], op_of) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = {}
    for kernel in kernels:
        if kernel.instructions_per_load:
            key = op_of(kernel.name), DIRECTIONS["backward" in kernel.name]
            found[key] = max(found.get(key, 0), kernel.instructions_per_load)
    return found


def table(predictions: list[Prediction]) -> str:
    """In Markdown."""
    titles = ("backend", "op", "case", "predicted MB", "predicted us", "predicted memory us", "predicted issue us",
              "predicted double us", "assumed launch us", "bound by")  # fmt: skip
    rows = []
    for one in predictions:
        issue = "-" if one.issue is None else f"{one.issue * 1e6:.1f}"
        times = (f"{one.total * 1e6:.1f}", f"{one.memory * 1e6:.1f}", issue, f"{one.double * 1e6:.1f}")
        rows.append(
            [one.backend, one.op, one.case, f"{one.bytes / 1e6:.1f}", *times, f"{one.launch * 1e6:.0f}", one.bound]
        )
    return markdown.table(titles, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0].replace("`", ""))
    parser.add_argument("--gpu", choices=GPUS, action="append", help="which (repeatable; default: all)")
    parser.add_argument("--backend", choices=traffic.BACKENDS, action="append", help="which (repeatable; default: all)")
    parser.add_argument("--batch", type=int, default=BATCH, help="samples (%(default)s)")
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args()
    if options.batch < 1:
        parser.error(f"--batch: expected at least 1, got {options.batch}")

    print(__doc__.partition("\n\n")[2])
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
            if backend not in gpu.runs:
                continue
            try:
                per_load = instructions(backend, gpu.arch)
            except (ToolMissing, ImportError) as error:
                print(f"{backend}: not predicted, {error}\n")
                continue
            predictions += [
                predict(spec, case, way, name, of_backend[f"{spec.name}_{way}"], per_load.get((spec.name, way)))
                for spec, case in predicted(options.batch)
                if backend in spec.launches
                for way in DIRECTIONS
            ]
        print(f"{table(predictions)}\n")
        everything += [asdict(one) | {"predicted_seconds": one.total, "bound": one.bound} for one in predictions]
    if options.json:
        Path(options.json).write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
