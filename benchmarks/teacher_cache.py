"""How large a cached teacher is, and what it saves: a distillation step with the teacher, and with its cache.

    python -m benchmarks.teacher_cache                       the project's teacher and student, segments of 2 s
    python -m benchmarks.teacher_cache --examples 64 --folder /mnt/disk

Sizes are those of the files, scaled to 20 000 segments; a step is the forward passes and the backward pass of abc_loss
between all layers, its rows looked up by position, medians of steps that take turns. The files have just been written:
rows come from the system's cache of pages, unless --folder lies on another kind of disk and is larger than memory.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from abckd_dns.constants import SAMPLE_RATE
from abckd_dns.network.load import load_network
from abckd_kernels import ABCLoss, Distiller, TeacherCache, cache_teacher

from . import markdown
from .measuring import machine

SEGMENTS = 20_000
WARM_UP = 2
FORMS: dict[str, dict[str, Any]] = {  # what is kept: options of cache_teacher
    "maps and means, float32": {},
    "maps and means, bfloat16": {"dtype": torch.bfloat16},
    "maps, means and output, bfloat16": {"dtype": torch.bfloat16, "output": lambda y: y},
    "features, float32": {"taps": None},
    "features, bfloat16": {"taps": None, "dtype": torch.bfloat16},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=32, help="segments that are written")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a segment")
    parser.add_argument("--repeats", type=int, default=10, help="steps of each kind")
    parser.add_argument("--folder", type=Path, help="where the caches are written, and left")
    arguments = parser.parse_args()
    if arguments.folder is not None:
        report(arguments, arguments.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        report(arguments, Path(folder))


def report(arguments: argparse.Namespace, folder: Path) -> None:
    torch.manual_seed(0)
    teacher, student = (load_network(name, name, new=True) for name in ("teacher", "student"))
    inputs = torch.randn(arguments.examples, round(arguments.seconds * SAMPLE_RATE)) / 10
    layers = {"student": list(student.distillation_layers), "teacher": list(teacher.distillation_layers)}
    loss = ABCLoss(*(_channels(network, names, inputs[:1]) for network, names in
                     ((student, layers["student"]), (teacher, layers["teacher"]))))  # fmt: skip
    cells, steps = [], {"teacher": _step(student, teacher, layers, loss, inputs, arguments.batch_size)}
    for name, options in FORMS.items():
        start = time.perf_counter()
        where = folder / name.replace(", ", "-").replace(" ", "-")
        cached = cache_teacher(where, teacher, inputs, layers["teacher"], batch_size=arguments.batch_size, **options)
        assert cached is not None  # it is the only part
        seconds = time.perf_counter() - start
        size = sum(file.stat().st_size for file in where.iterdir()) / arguments.examples
        numbers = f"{size / 1e3:.0f}", f"{size * SEGMENTS / 1e9:.1f}", f"{seconds / arguments.examples * 1e3:.1f}"
        cells.append([name, *numbers])
        steps[name] = _step(student, cached, layers, loss, inputs, arguments.batch_size)
    times = _interleaved(steps, arguments.repeats)
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print(f"batches of {arguments.batch_size} segments of {arguments.seconds:g} s, {len(layers['teacher'])} layers; ")
    print(f"step with the teacher: {times['teacher']:.0f} ms\n")
    titles = ["kept", "kB per segment", f"GB of {SEGMENTS} segments", "ms to write one", "step ms", "of the teacher's"]
    rows = [[*row, f"{times[row[0]]:.0f}", f"{times[row[0]] / times['teacher']:.2f}"] for row in cells]
    print(markdown.table(titles, rows))


def _channels(network: nn.Module, names: list[str], x: Tensor) -> list[int]:
    found: dict[str, int] = {}
    handles = []
    for name in names:
        hook = lambda _, __, y, name=name: found.update({name: y.shape[1]})  # noqa: E731
        handles.append(network.get_submodule(name).register_forward_hook(hook))
    with torch.no_grad():
        network(x)
    for handle in handles:
        handle.remove()
    return [found[name] for name in names]


def _step(
    student: nn.Module, teacher: nn.Module | TeacherCache, layers: dict[str, list[str]], loss: nn.Module,
    inputs: Tensor, batch_size: int,
) -> Callable[[int], None]:  # fmt: skip
    """step(turn): forward and backward of one batch, another one in each turn."""

    def step(turn: int) -> None:
        examples = (torch.arange(batch_size) + turn * batch_size) % len(inputs)
        given = {"examples": examples} if isinstance(teacher, TeacherCache) else {}
        with Distiller(student, teacher, layers["student"], layers["teacher"], loss) as distiller:
            output = distiller(inputs[examples], **given)
            parameters = [p for p in (*student.parameters(), *loss.parameters()) if p.requires_grad]
            torch.autograd.grad(output.loss + output.student.square().mean(), parameters, allow_unused=True)

    return step


def _interleaved(steps: dict[str, Callable[[int], None]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(-WARM_UP, repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step(turn + WARM_UP)
            if turn >= 0:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
