"""The timings of `benchmarks.gpu_check`: plain PyTorch, torch.compile of it, and every backend, interleaved.

Each feature is at least four times the L2 cache, so that what is measured is memory. Medians of CUDA events. The bytes
are the fewest possible: forward reads every input, backward reads those that get a gradient once more and writes it;
their rate is compared with that of a large copy (bytes read plus bytes written), measured in the same turns.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from abckd_kernels import abc_loss, compress, tap_all, use_backend

from . import eager
from .gpu_parts import Setting

TIMES_L2 = 4
WARM_UP = 3
EXACT_SAMPLES = 2
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4 * torch.finfo(torch.bfloat16).eps}


@dataclass(frozen=True)
class Work:
    """ours, plain: functions of two lists of tensors to a scalar; the first list gets gradients. first, second: shapes
    of one sample. by_batch: the scalar is a mean over the batch, else a sum.
    """

    op: str
    dtype: torch.dtype
    channels_last: bool
    ours: Callable[[list[Tensor], list[Tensor]], Tensor]
    plain: Callable[[list[Tensor], list[Tensor]], Tensor]
    first: tuple[tuple[int, ...], ...]
    second: tuple[tuple[int, ...], ...]
    by_batch: bool = False

    def inputs(self, device: str, batch: int) -> tuple[list[Tensor], list[Tensor]]:
        def tensor(shape):
            x = torch.rand((batch, *shape), device=device, dtype=self.dtype) - 0.25
            return x.movedim(1, -1).contiguous().movedim(-1, 1) if self.channels_last else x

        return [tensor(shape).requires_grad_() for shape in self.first], [tensor(shape) for shape in self.second]


@dataclass(frozen=True)
class Form:
    """A way to do some work: by one of our backends, or by PyTorch alone. The backend serves backward too."""

    function: Callable[[list[Tensor], list[Tensor]], Tensor]
    backend: str | None = None

    def in_force(self):
        return contextlib.nullcontext() if self.backend is None else use_backend(self.backend)


def _tap(features: list[Tensor], _: list[Tensor]) -> Tensor:
    _, maps, means = tap_all(features)
    return sum(x.sum() for x in (*maps, *means))


def _works(quick: bool) -> list[Work]:
    student, teacher = (32, 200, 64), (64, 200, 64)
    works = []
    for dtype in (torch.float32, torch.bfloat16):
        for channels_last in (False, True):
            layers = ((student,) * 3, (teacher,) * 6)
            works.append(Work("abc_loss", dtype, channels_last, abc_loss, eager.abc_loss, *layers, by_batch=True))
            works.append(Work("tap", dtype, channels_last, _tap, lambda x, _: eager.tap(x), (teacher,), ()))
    maps = ((200, 64),) * 3, ((200, 64),) * 6
    works.append(Work("compress", torch.float32, False, lambda s, t: compress(s, t)[0].sum(), eager.compress, *maps))
    works.sort(key=lambda work: (work.channels_last, work.op != "abc_loss"))
    return works[:3] if quick else works


def timings(setting: Setting) -> list[dict]:
    """One row per op, dtype and layout. A form that can't run leaves its error in the row; ours must run."""
    rows = []
    for work in _works(setting.quick):
        rows.append(_row(work, setting))
        setting.record(rows)
        if setting.is_gpu:
            torch.cuda.empty_cache()
    broken = [f"{row['op']} {row['dtype']}: {name}: {row['errors'][name]}"
              for row in rows for name in setting.backends if name in row["errors"]]  # fmt: skip
    assert not broken, "; ".join(broken)
    return rows


def _row(work: Work, setting: Setting) -> dict:
    torch.manual_seed(0)
    batch = _batch(work, setting)
    first, second = work.inputs(setting.device, batch)
    copied = torch.empty(_copy_bytes(setting) // 4, device=setting.device)
    target = torch.empty_like(copied)

    torch._dynamo.reset()
    forms = {"eager": Form(work.plain), "compile": Form(torch.compile(work.plain, dynamic=False))}
    forms |= {backend: Form(work.ours, backend) for backend in setting.backends}
    errors, times = {}, {name: [] for name in (*forms, "copy")}
    for name, form in list(forms.items()):
        try:
            if form.backend is not None:
                _check(work, form, first, second)
            for _ in range(WARM_UP):
                _time_step(form, first, second, setting.is_gpu)
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}"[:1000]
            del forms[name], times[name]
    for _ in range((10 if setting.quick else 30) if setting.is_gpu else 3):
        marks = {name: _time_step(form, first, second, setting.is_gpu) for name, form in forms.items()}
        marks["copy"] = _time_copy(copied, target, setting.is_gpu)
        if setting.is_gpu:
            torch.cuda.synchronize()
        for name, stamps in marks.items():
            times[name].append([_milliseconds(stamps[0], stamp) for stamp in stamps[1:]])

    copy = statistics.median(x[0] for x in times.pop("copy"))
    copy_rate = 2 * copied.nbytes / copy / 1e6
    forward_bytes = sum(x.nbytes for x in (*first, *second))
    size = {"forward": forward_bytes, "total": forward_bytes + 2 * sum(x.nbytes for x in first)}
    medians = {
        name: {part: statistics.median(x[index] for x in steps) for index, part in enumerate(("forward", "total"))}
        for name, steps in times.items()
    }
    rates = {name: {part: size[part] / t / 1e6 for part, t in parts.items()} for name, parts in medians.items()}
    return {
        "op": work.op,
        "dtype": str(work.dtype).removeprefix("torch."),
        "layout": "channels_last" if work.channels_last else "contiguous",
        "batch": batch,
        "smallest_input_over_L2": min(x.nbytes for x in (*first, *second)) / (_l2_bytes(setting) or 1),
        "bytes": size,
        "milliseconds": medians,
        "gigabytes_per_second": rates,
        "copy_gigabytes_per_second": copy_rate,
        "share_of_copy": {
            name: {part: rate / copy_rate for part, rate in parts.items()} for name, parts in rates.items()
        },
        "errors": errors,
    }


def _batch(work: Work, setting: Setting) -> int:
    """The smallest batch that makes every input TIMES_L2 times the L2 cache, or what a third of free memory holds."""
    if not setting.is_gpu:
        return EXACT_SAMPLES
    sizes = [torch.Size(shape).numel() * work.dtype.itemsize for shape in (*work.first, *work.second)]
    wanted = -(-TIMES_L2 * _l2_bytes(setting) // min(sizes))
    free, _ = torch.cuda.mem_get_info()
    # Plain PyTorch keeps a map-sized copy or two of everything; compress, three float32 copies.
    return max(EXACT_SAMPLES, min(wanted, (free - 2 * _copy_bytes(setting)) // 5 // sum(sizes)))


def _l2_bytes(setting: Setting) -> int:
    return torch.cuda.get_device_properties(0).L2_cache_size if setting.is_gpu else 0


def _copy_bytes(setting: Setting) -> int:
    return max(2**28, TIMES_L2 * _l2_bytes(setting)) if setting.is_gpu else 2**24


def _check(work: Work, form: Form, first: list[Tensor], second: list[Tensor]) -> None:
    """Gradients of the first samples against float64. Samples do not mix, so that it needs no more of the batch."""
    with form.in_force():
        grads = torch.autograd.grad(form.function(first, second), first)
    few = [x.detach()[:EXACT_SAMPLES].double().requires_grad_() for x in first]
    loss = work.plain(few, [x[:EXACT_SAMPLES].double() for x in second])
    scale = EXACT_SAMPLES / first[0].shape[0] if work.by_batch else 1
    for index, (grad, exact) in enumerate(zip(grads, torch.autograd.grad(loss, few), strict=True)):
        error = (grad[:EXACT_SAMPLES].double() - scale * exact).norm() / (scale * exact).norm()
        assert error < TOLERANCE[work.dtype], f"the gradient of input {index} is off by {error:.1e}"


def _time_step(form: Form, first: list[Tensor], second: list[Tensor], is_gpu: bool) -> list:
    """Marks before forward, behind it, and behind backward."""
    with form.in_force():
        marks = [_mark(is_gpu)]
        loss = form.function(first, second)
        marks.append(_mark(is_gpu))
        torch.autograd.grad(loss, first)
        return [*marks, _mark(is_gpu)]


def _time_copy(source: Tensor, target: Tensor, is_gpu: bool) -> list:
    start = _mark(is_gpu)
    target.copy_(source)
    return [start, _mark(is_gpu)]


def _mark(is_gpu: bool):
    if not is_gpu:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _milliseconds(start, end) -> float:
    return (end - start) * 1e3 if isinstance(start, float) else start.elapsed_time(end)
