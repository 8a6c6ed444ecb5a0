"""One row of results: a loss or op in all its forms, checked, then timed interleaved on the same inputs.

milliseconds   medians of forward, and of forward + backward (total)
quartiles      of the same: what the medians are worth
ratios         of ours to the other forms and to the limit, turn by turn: median and quartiles
limit          milliseconds of the compulsory bytes at the bandwidth measured in the same turns (median): student and
               teacher read once forward; the student read and its gradient written once backward
traffic        bytes that operators move, over the compulsory (an operator that isn't a view reads its operands once
               and writes its results once; torch.compile's can't be counted this way)
memory         MB at most beyond inputs and returned gradients; one feature is the largest single input
error          of the gradient of ours, relative to float64 in the norm; of half precision at 2^16 times the loss
compile        seconds of torch.compile, beyond those of the step that it then does
network        the same between two networks (benchmarks/networks.py): the loss's part is the step with it minus the
               step without it
graph          milliseconds of the replay of a captured CUDA graph (GPU)
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch._inductor.utils import fresh_cache

from abckd_verify.machines.devices import DEVICES

from .correctness import check, errors
from .measuring import machine, traffic
from .networks import STEP, in_network, step_milliseconds
from .subjects import Inputs, Setup, Subject, able, as_list, in_force, parameters

WARM_UP = 2
SECONDS = 30  # that the turns of one row may take; LEAST are made
LEAST = 5


@dataclass(frozen=True)
class Effort:
    """repeats: turns at most. compiled, backends, network, extras: whether to measure torch.compile, ours by other
    backends than the first, the place in a network, and memory, traffic and errors.
    """

    repeats: int = 30
    compiled: bool = True
    backends: bool = True
    network: bool = True
    extras: bool = True


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """torch.compile keeps nothing from before, and what it does once in a process is done."""
    with fresh_cache():
        torch.compile(lambda x: x + 1)(torch.ones(2))
        yield


@dataclass
class Form:
    """A way to do the work. steps: for each set of inputs a step() that gives the loss, and the leaves that get
    gradients; `replayed`: the replays of forward, and of forward + backward.
    """

    steps: list[tuple]
    backend: str | None = None
    replayed: bool = False
    times: dict[str, list[float]] = field(default_factory=dict)


def row(subject: Subject, setup: Setup, effort: Effort = Effort()) -> dict:  # noqa: B008 - frozen
    """The row of a loss or op. What can't run, or is wrong, leaves its error in it and has no time.

    Raises correctness.Wrong, or what it raises, where that is ours by the first backend.
    """
    device, names = DEVICES[setup.device], able(setup.device)[: None if effort.backends else 1]
    found = {"errors": {}}
    check(subject, setup, names[0])
    for backend in names[1:]:
        try:
            check(subject, setup, backend)
        except Exception as error:
            found["errors"][backend] = _said(error)
    sets = [subject.inputs(setup)]
    read = [x for group in sets[0] for x in as_list(group)]
    student = as_list(sets[0][0])
    size = {"read": sum(x.nbytes for x in read), "student": sum(x.nbytes for x in student)}
    sets += [subject.inputs(setup) for _ in range(device.copies(size["read"]) - 1)]

    forms = _forms(subject, sets, [name for name in names if name not in found["errors"]], effort)
    networks = _networks(subject, sets[0], forms) if effort.network and subject.in_network else {}
    seconds = {name: _warmed(name, form, forms, found["errors"], device) for name, form in list(forms.items())}
    for name in list(networks):
        if name in forms or name == "without":
            _warmed(name, networks[name], networks, found["errors"], device)
        else:
            del networks[name]
    graphs = _graphs(forms, found["errors"], device) if device.is_gpu else {}
    everything = {**forms, **{("network", k): v for k, v in networks.items()}, **graphs}
    rates = _turns(everything, effort.repeats, device)
    forward = [size["read"] / rate * 1e3 for rate in rates["read"]]
    total = [least + 2 * size["student"] / rate * 1e3 for least, rate in zip(forward, rates["copy"], strict=True)]

    found |= _described(subject, setup, sets[0], names[0], effort)
    found["bandwidth"] = {name: statistics.median(rate) / 1e9 for name, rate in rates.items()}
    found["limit"] = {"forward": statistics.median(forward), "total": statistics.median(total)}
    compulsory = size["read"] + 2 * size["student"]
    found |= {"forward_megabytes": size["read"] / 1e6, "compulsory_megabytes": compulsory / 1e6}
    found["feature_megabytes"] = max(x.nbytes for x in read) / 1e6
    found |= _medians(forms)
    found["turns"] = len(forms["ours"].times["total"])
    found["ratios"] = _ratios({name: form.times["total"] for name, form in forms.items()} | {"limit": total})
    found["compile_seconds"] = seconds.get("compile")
    if graphs:
        found["graph"] = {
            name.removeprefix("graph of "): times for name, times in _medians(graphs)["milliseconds"].items()
        }
    if effort.extras:
        found["traffic"] = {
            name: traffic(lambda form=forms[name]: _differentiated(form)) / compulsory
            for name in ("eager", "ours")
            if name in forms
        }
        found["memory_megabytes"] = {name: _extra_megabytes(form, device) for name, form in forms.items()}
        found["error"] = errors(subject, setup)
    found["network"] = _network_row(networks, setup, device, effort) if networks else None
    return found


def _described(subject: Subject, setup: Setup, inputs: tuple[Inputs, Inputs], backend: str, effort: Effort) -> dict:
    def shapes(x):
        return list(x.shape) if isinstance(x, Tensor) else [list(one.shape) for one in x]

    return {
        "op": subject.name,
        "dtype": str(setup.dtype).removeprefix("torch."),
        "size": setup.size,
        "layout": setup.layout,
        "device": setup.device,
        "backend": backend,
        "student": shapes(inputs[0]),
        "teacher": shapes(inputs[1]),
        "note": subject.case.note,
        "machine": machine(setup.device),
    }


def _forms(subject: Subject, sets: Sequence[tuple[Inputs, Inputs]], names: list[str], effort: Effort) -> dict:
    """eager, compile, ours (by the first backend that can) and ours by every other backend, by its name."""
    published, ours = subject.published(*sets[0]), subject.ours(*sets[0])

    def form(function, backend=None):
        def bound(student, teacher):
            extra = subject.extra(student, teacher)
            leaves = [*as_list(student), *parameters(function if isinstance(function, torch.nn.Module) else published)]
            return lambda: function(student, teacher, **extra), leaves

        return Form([bound(*pair) for pair in sets], backend)

    torch._dynamo.reset()
    forms = {"eager": form(published)}
    if effort.compiled:
        forms["compile"] = form(torch.compile(published, dynamic=False))
    forms["ours"] = form(ours, names[0])
    return forms | {name: form(ours, name) for name in names[1:]}


def _networks(subject: Subject, inputs: tuple[Inputs, Inputs], forms: dict) -> dict[str, Form]:
    functions = {"without": None, "eager": subject.published(*inputs)}
    if "compile" in forms:
        functions["compile"] = torch.compile(subject.published(*inputs), dynamic=False)
    functions["ours"] = subject.ours(*inputs, tapped=True)
    return {
        name: Form([in_network(subject, function, *inputs)], forms[name].backend if name in forms else None)
        for name, function in functions.items()
    }


def _warmed(name: str, form: Form, forms: dict, errors: dict[str, str], device) -> float | None:
    """Seconds of a first step beyond those of another; takes a form that can't run out of `forms`."""
    try:
        start = time.perf_counter()
        _differentiated(form)
        device.wait()
        middle = time.perf_counter()
        for index in range(WARM_UP * len(form.steps)):
            _differentiated(form, index)
        device.wait()
        return middle - start - (time.perf_counter() - middle) / (WARM_UP * len(form.steps))
    except Exception as error:
        if name == "ours":
            raise
        errors[name] = _said(error)
        del forms[name]
        return None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def _differentiated(form: Form, turn: int = 0) -> list[Tensor | None]:
    """The gradients of a step."""
    step, leaves = form.steps[turn % len(form.steps)]
    with in_force(form.backend):
        return torch.autograd.grad(step(), leaves, allow_unused=True)


def _graphs(forms: dict[str, Form], errors: dict[str, str], device) -> dict[str, Form]:
    """For each form the replays of its captured steps, forward apart from forward + backward."""
    graphs = {}
    for name, form in forms.items():
        try:
            with in_force(form.backend):
                replays = [
                    (device.captured(step), device.captured(lambda turn=turn, form=form: _differentiated(form, turn)))
                    for turn, (step, _) in enumerate(form.steps)
                ]
            graphs["graph of " + name] = Form(replays, replayed=True)
        except RuntimeError as error:  # some published forms wait for the GPU
            errors["graph of " + name] = _said(error)
    return graphs


def _turns(forms: dict, repeats: int, device) -> dict[str, list[float]]:
    """Time all forms in turn, and keep milliseconds of forward and of the whole step in each.

    Each turn begins with another form: what goes before changes what is in the caches. Returns bytes per second of the
    device's streams in each turn: on a machine that others use the bandwidth of a minute ago is not that of now.
    """
    start, streams = time.perf_counter(), device.streams()
    seconds: dict[str, list[float]] = {name: [] for name in streams}
    for turn in range(repeats):
        if turn >= LEAST and time.perf_counter() - start > SECONDS:
            break
        names = list(forms)
        names = names[turn % len(names) :] + names[: turn % len(names)]
        marks = {name: _marked(forms[name], turn, device) for name in names}
        moved = {}
        for name, stream in streams.items():
            begin = device.mark()
            stream.work()
            moved[name] = begin, device.mark()
        device.wait()
        for name, stamps in marks.items():
            for part, (begin, end) in stamps.items():
                forms[name].times.setdefault(part, []).append(device.milliseconds(begin, end))
        for name, pair in moved.items():
            seconds[name].append(device.milliseconds(*pair) / 1e3)
    return {name: [stream.bytes / x for x in seconds[name]] for name, stream in streams.items()}


def _marked(form: Form, turn: int, device) -> dict[str, tuple]:
    first, second = form.steps[turn % len(form.steps)]
    if form.replayed:
        marks = [device.mark()]
        for replay in (first, second):
            replay()
            marks.append(device.mark())
        return {"forward": (marks[0], marks[1]), "total": (marks[1], marks[2])}
    with in_force(form.backend):
        start = device.mark()
        loss = first()
        middle = device.mark()
        torch.autograd.grad(loss, second, allow_unused=True)
        return {"forward": (start, middle), "total": (start, device.mark())}


def _extra_megabytes(form: Form, device) -> float:
    """At most beyond what was there before and the gradients."""
    returned = 0

    def work():
        nonlocal returned
        gradients = _differentiated(form)
        returned = sum(x.nbytes for x in gradients if x is not None)
        return gradients

    return max(device.peak(work) - returned, 0) / 1e6


def _medians(forms: dict[str, Form]) -> dict:
    return {
        "milliseconds": {n: {p: statistics.median(x) for p, x in form.times.items()} for n, form in forms.items()},
        "quartiles": {n: {p: quartiles(x) for p, x in form.times.items()} for n, form in forms.items()},
    }


def quartiles(values: Sequence[float]) -> list[float]:
    """The first and the third."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, high]


def _ratios(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Of ours to the others, turn by turn, so that what slows a turn down slows both."""
    found = {}
    for name in ("eager", "compile", "limit"):
        if name not in times:
            continue
        values = [a / b for a, b in zip(times["ours"], times[name], strict=True)]
        low, high = quartiles(values)
        found[name] = {"median": statistics.median(values), "low": low, "high": high}
    return found


def _network_row(networks: dict[str, Form], setup: Setup, device, effort: Effort) -> dict:
    """Milliseconds of the step and of the loss in it, its share of STEP, which is measured by itself, and memory."""
    medians = {name: statistics.median(form.times["total"]) for name, form in networks.items()}
    step, without = step_milliseconds(setup), networks["without"].times["total"]
    losses = {}
    for name, form in networks.items():
        if name != "without":
            parts = [a - b for a, b in zip(form.times["total"], without, strict=True)]
            losses[name] = {"median": statistics.median(parts), "quartiles": quartiles(parts)}
    found = {
        "milliseconds": medians,
        "loss_milliseconds": losses,
        "step": STEP,
        "step_milliseconds": step,
        "share": {name: loss["median"] / (step + loss["median"]) for name, loss in losses.items()},
    }
    if effort.extras:
        peak = {name: _extra_megabytes(form, device) for name, form in networks.items()}
        held = {name: device.held(form.steps[0][0]) / 1e6 for name, form in networks.items()}
        for what, sizes in (("peak_megabytes", peak), ("held_megabytes", held)):
            found[what] = {name: x - sizes["without"] for name, x in sizes.items() if name != "without"}
    return found
