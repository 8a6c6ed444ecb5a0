"""What layers and losses have to say, measured before a student is trained with them.

maps.csv         how alike the teacher's layers are: correlation of contrast maps, cosine of maps as attention transfer
                 compares them, similarity of frame kernels; rows "input" and "output" are the noisy and enhanced speech
errors.csv       which layers' maps lie where the baseline's output is wrong, and where the teacher is nearer
gradients.csv    cosine of each loss's gradient with the supervised one, by stage of the student, early and late
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from . import scoring
from .cache import Cache, with_features
from .package import Stft
from .queue import Places
from .rig import Run, System, load_student, train
from .segments import Batch, Segments
from .views import contrast, energy, on_bands, rooted, unit

BATCHES = 12
_REFERENCE = 64  # batches of each half of the supervised gradient, which is mostly noise in a few
_FIRST = 20_000  # batches that no training sees
_BANDS = 17
EARLY, LATE = 75, 750
LOSSES = (
    "response",
    "at_pairs",
    "at_frame",
    "afd",
    "abc(scores=learned)",
    "gram_frames",
    "gram_bands",
    "time_similarity",
    "hint_pairs",
    "semckd",
    "abc_maps",
    "abc_maps(attention=uniform)",
    "abc_maps(gap=true)",
    "abc_kernel",
    "abc_channels",
    "abc_auto",
)
_stft = Stft()


def _batches(places: Places, cache: Cache) -> Iterator[Batch]:
    segments = Segments(places.mixtures, cache, 0)
    return (segments.batch(_FIRST + index) for index in range(BATCHES))


def _loudness(waveform: Tensor) -> Tensor:
    return (_stft(waveform).abs() + 1e-4).pow(0.3)


def _correlation(a: Tensor, b: Tensor) -> float:
    """Over bands of each frame, in the mean."""
    a, b = (unit(x - x.mean(-1, keepdim=True)) for x in (a, b))
    return (a * b).sum(-1).mean().item()


@torch.no_grad()
def maps(teacher: str, places: Places) -> list[dict]:
    cache = Cache(places.cache(teacher))
    names = ["input", *(layer.name for layer in cache.layers), "output"]
    sums: dict[tuple[str, str, str], float] = {}
    for batch in _batches(places, cache):
        energies = [_stft(batch.noisy).abs().square(), *batch.maps, _stft(batch.response).abs().square()]
        small = [on_bands(x, _BANDS) for x in energies]
        contrasts = [contrast(x) for x in small]
        attention = [unit(x.flatten(1)) for x in small]
        kernels = [None, *(_kernel(x) for x in batch.features), None]
        for a, first in enumerate(names):
            for b, second in enumerate(names):
                values = {
                    "contrast": (contrasts[a] * contrasts[b]).sum(-1).mean().item(),
                    "map": (attention[a] * attention[b]).sum(-1).mean().item(),
                }
                if kernels[a] is not None and kernels[b] is not None:
                    values["kernel"] = (unit(kernels[a].flatten(1)) * unit(kernels[b].flatten(1))).sum(-1).mean().item()
                for name, value in values.items():
                    sums[first, second, name] = sums.get((first, second, name), 0.0) + value / BATCHES
    return [
        {"teacher": teacher, "what": what, "layer": first, "other": second, "likeness": f"{value:.3f}"}
        for (first, second, what), value in sums.items()
    ]


def _kernel(x: Tensor) -> Tensor:
    x = rooted(x).transpose(1, 2).flatten(2)
    x = unit(x - x.mean(1, keepdim=True))
    return x @ x.mT


@torch.no_grad()
def errors(teacher: str, places: Places, student: Path) -> list[dict]:
    """Correlations over the bands of a frame with the error of the baseline's output, and with the gap: how much nearer
    the teacher is to clean speech. `map`: of the teacher's contrast map; `misfit`: of its squared difference from the
    map of the student's layer that correlates best."""
    cache = Cache(places.cache(teacher))
    network = load_student(student).train()
    sums: dict[tuple[str, str], float] = {}
    for batch in _batches(places, cache):
        output, features = with_features(network, batch.noisy)
        own, taught, clean = (on_bands(_loudness(x), _BANDS) for x in (output, batch.response, batch.clean))
        error = (own - clean).abs()
        gap = (error - (taught - clean).abs()).relu()
        students = [contrast(on_bands(energy(x), _BANDS)) for x in features.values()]
        for layer, x in zip(cache.layers, batch.maps, strict=True):
            a = contrast(on_bands(x, _BANDS))
            likeness = [(a * b).sum(-1).mean().item() for b in students]
            nearest = students[max(range(len(students)), key=likeness.__getitem__)]
            misfit = (a - nearest).square()
            found = {
                "map, error": _correlation(a, error),
                "map, gap": _correlation(a, gap),
                "misfit, error": _correlation(misfit, error),
                "misfit, gap": _correlation(misfit, gap),
                "likeness of the nearest student layer": max(likeness),
            }
            for name, value in found.items():
                sums[layer.name, name] = sums.get((layer.name, name), 0.0) + value / BATCHES
    return [
        {"teacher": teacher, "layer": layer, "what": what, "value": f"{value:.3f}"}
        for (layer, what), value in sums.items()
    ]


def gradients(teacher: str, places: Places, losses: Sequence[str]) -> Iterator[list[dict]]:
    """Cosines of sums over batches, loss by loss. "supervised again" is the supervised gradient on other batches: the
    ceiling; "(other batches)" are a loss's own gradients on those."""
    cache = Cache(places.cache(teacher))
    batches = list(_batches(places, cache))
    halves = batches[::2], batches[1::2]
    states, references = {}, {}
    for when, steps in (("early", EARLY), ("late", LATE)):
        baseline = Run("", "labels", "none", 0.0, "constant", steps, 0)
        weights = places.run(baseline) / "average.pt"
        if not weights.exists():
            train(baseline, None, places.mixtures, float("nan"), weights.parent)
        states[when] = weights
        system, segments = System(baseline, None), Segments(places.mixtures, None, 0)
        references[when], again = (
            _gradient(system, weights, (segments.batch(begin + index) for index in range(_REFERENCE)), of_kd=False)
            for begin in (2 * _FIRST, 3 * _FIRST)
        )
        yield _cosines(teacher, "supervised again", when, again, references[when])
    for loss in losses:
        system = System(Run(teacher, "labels", loss, 1.0, "constant", 1, 0), cache)
        system.prepare(Segments(places.mixtures, cache, 0))
        rows = []
        for when, weights in states.items():
            for name, half in zip((loss, f"{loss} (other batches)"), halves, strict=True):
                rows += _cosines(teacher, name, when, _gradient(system, weights, half, of_kd=True), references[when])
        yield rows


def _gradient(system: System, weights: Path, batches: Iterable[Batch], of_kd: bool) -> dict[str, Tensor]:
    """By stage of the student, flat."""
    system.student.load_state_dict(torch.load(weights))
    system.train()
    for batch in batches:
        speech, kd = system.terms(batch)
        (kd if of_kd else speech).backward()
    stages: dict[str, list[Tensor]] = {}
    for name, parameter in system.student.named_parameters():
        stage = ".".join(name.split(".")[:2]) if name.startswith(("encoder", "decoder")) else name.split(".")[0]
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        stages.setdefault(stage, []).append(gradient.flatten())
        stages.setdefault("all", []).append(gradient.flatten())
    system.zero_grad()
    return {stage: torch.cat(parts) for stage, parts in stages.items()}


def _cosines(teacher: str, loss: str, when: str, found: dict[str, Tensor], reference: dict[str, Tensor]) -> list[dict]:
    rows = []
    for stage, gradient in found.items():
        cosine = functional.cosine_similarity(gradient, reference[stage], dim=0).item()
        share = (gradient.norm() / found["all"].norm().clamp(min=1e-20)).item()
        row = {"teacher": teacher, "loss": loss, "when": when, "stage": stage}
        rows.append({**row, "cosine": f"{cosine:.3f}", "share_of_norm": f"{share:.3f}"})
    return rows


def write(name: str, rows: list[dict], folder: Path, key: tuple[str, ...] = ()) -> None:
    """Rows of a teacher, and of the same `key` where one is given, take the place of those that it had."""
    path, columns = folder / name, ("teacher", *key)
    new = {tuple(row[column] for column in columns) for row in rows}
    before = [row for row in scoring.read(path) if tuple(row[column] for column in columns) not in new]
    scoring.write(path, [*before, *rows])
