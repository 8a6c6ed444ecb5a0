"""One run: a student learns from cached teachers, is averaged, and is scored on the development set.

The objective is SpeechLoss(student, target) + weight * unit * KD. The target is clean speech, or the teacher's output.
The unit of a loss is the weight at which its gradient has the norm of the objective's, over the parameters that it
reaches, at a student that learned without KD; so weights of losses compare. Schedules of the weight:

constant     as it is
two-phase    for the first 30 % of the steps KD alone (at weight 1 of its unit), then the objective alone
fade         falls to 0 along a cosine
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .cache import Cache, with_features
from .losses import build, parameters_of, shapes_of
from .package import PRESETS, Denoiser, InputError, SpeechLoss, write_atomically
from .segments import Batch, Segments
from .views import Loss, View

_KD_SHARE = 0.3  # of the steps, in the first of two phases
_EMA = 0.99
_SAVE_EVERY = 250
UNIT_BATCHES = 8
_PREPARATION_SEED = 10_000  # of the batches that a loss's own parts see beforehand


@dataclass(frozen=True)
class Run:
    """What tells runs apart."""

    teacher: str
    """Name of a cache; "" only where nothing is asked of a teacher."""
    regime: str
    """labels or label-free"""
    loss: str
    """As `losses.build` takes it; "none" for no KD."""
    weight: float
    """In units of the loss."""
    schedule: str
    steps: int
    seed: int
    lr: float = 4e-3

    @property
    def name(self) -> str:
        """Of its folder."""
        loss = self.loss.replace(" ", "").replace("(", "-").replace(")", "").replace(",", "-").replace("*", "x")
        of = f"{self.teacher or 'no-teacher'}/{self.regime}/{loss}"
        return f"{of}/w{self.weight:g}-{self.schedule}-s{self.steps}-lr{self.lr:g}-seed{self.seed}"


class System(nn.Module):
    """Student, loss and objective."""

    def __init__(self, run: Run, cache: Cache | None) -> None:
        super().__init__()
        torch.manual_seed(run.seed)
        self.run, self.student = run, Denoiser(PRESETS["student"])
        self.objective = SpeechLoss()
        self.loss: Loss | None = None
        if run.loss != "none":
            torch.manual_seed(run.seed + 1)
            self.loss = build(run.loss, shapes_of(self.student, cache))

    def view(self, batch: Batch, student: list[Tensor], output: Tensor) -> View:
        clean = None if self.run.regime == "label-free" else batch.clean
        return View(student, batch.maps, batch.features, output, batch.response, clean)

    def terms(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Objective and KD."""
        output, features = with_features(self.student, batch.noisy)
        target = batch.response if self.run.regime == "label-free" else batch.clean
        speech = self.objective(output, target)
        if self.loss is None:
            return speech, None
        return speech, self.loss(self.view(batch, list(features.values()), output))

    def prepare(self, segments: Segments) -> None:
        """Train the loss's own parts on the teacher alone, and freeze what the student's steps do not train."""
        if self.loss is None or not self.loss.preparation:
            return
        parameters = [p for p in self.loss.parameters() if p.requires_grad]
        adam = torch.optim.Adam(parameters, lr=5e-3)
        for step in range(self.loss.preparation):
            batch = segments.batch(_PREPARATION_SEED + step)
            self.loss.prepare_step(self.view(batch, [], batch.noisy)).backward()
            adam.step()
            adam.zero_grad()


def measure_unit(run: Run, cache: Cache, mixtures: Path, baseline: Path) -> float:
    """The weight at which the loss's gradient has the norm of the objective's, at the student in `baseline`."""
    system = System(run, cache)
    segments = Segments(mixtures, cache, run.seed)
    system.prepare(segments)
    system.student.load_state_dict(torch.load(baseline))
    system.train()
    parameters = list(system.student.parameters())
    squares = [0.0, 0.0]
    for step in range(UNIT_BATCHES):
        terms = system.terms(segments.batch(_PREPARATION_SEED // 2 + step))
        gradients = [torch.autograd.grad(x, parameters, retain_graph=True, allow_unused=True) for x in terms]
        for of_speech, of_kd in zip(*gradients, strict=True):
            if of_kd is not None:
                squares[0] += of_speech.square().sum().item()
                squares[1] += of_kd.square().sum().item()
    if not 0 < squares[1] < math.inf:
        raise InputError(f"{run.loss}: its gradient has a norm of {math.sqrt(squares[1])} at the student without KD")
    return math.sqrt(squares[0] / squares[1])


class Average:
    """Weights and statistics of a network, averaged over the last steps with less and less weight on the past."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.state = {name: x.detach().clone() for name, x in network.state_dict().items()}
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        decay = min(_EMA, self.steps / (self.steps + 9))
        for name, x in self.network.state_dict().items():
            if x.is_floating_point():
                self.state[name].lerp_(x, 1 - decay)
            else:
                self.state[name].copy_(x)


def train(run: Run, cache: Cache | None, mixtures: Path, unit: float, folder: Path) -> dict[str, float]:
    """Do the steps that are left and leave average.pt in `folder`; returns seconds and last values of the terms."""
    folder.mkdir(parents=True, exist_ok=True)
    system = System(run, cache)
    segments = Segments(mixtures, cache, run.seed)
    saved = folder / "state.pt"
    state = torch.load(saved, weights_only=False) if saved.exists() else None
    if state is None:
        system.prepare(segments)
    learned = [*system.student.parameters(), *parameters_of([system.loss] if system.loss is not None else [])]
    adam = torch.optim.AdamW(learned, lr=run.lr, fused=True)
    average = Average(system.student)
    begin, seconds = 0, 0.0
    if state is not None:
        system.load_state_dict(state["system"])
        adam.load_state_dict(state["adam"])
        average.state, average.steps = state["average"], state["step"]
        begin, seconds = state["step"], state["seconds"]
    system.train()
    values = {"speech": math.nan, "kd": math.nan}
    started = time.process_time()
    uses_features = run.loss not in ("none", "at", "at_pairs", "at_frame", "at_views", "response", "dispatch")
    for step in range(begin, run.steps):
        batch = segments.batch(step, maps=run.loss != "none", features=uses_features)
        speech, kd = system.terms(batch)
        total = _total(run, speech, kd, unit, step)
        total.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        for group in adam.param_groups:
            group["lr"] = run.lr * _rate(step, run.steps)
        if torch.isfinite(total):
            adam.step()
        adam.zero_grad()
        average.update()
        values = {
            "speech": _smooth(values["speech"], speech.item()),
            "kd": math.nan if kd is None else _smooth(values["kd"], kd.item()),
        }
        if (step + 1) % _SAVE_EVERY == 0 and step + 1 < run.steps:
            used = seconds + time.process_time() - started
            _save(saved, system, adam, average, step + 1, used)
    seconds += time.process_time() - started
    write_atomically(folder / "average.pt", lambda path: torch.save(average.state, path))
    saved.unlink(missing_ok=True)
    return {**values, "train_seconds": seconds}


def _total(run: Run, speech: Tensor, kd: Tensor | None, unit: float, step: int) -> Tensor:
    if kd is None:
        return speech
    weight = run.weight * unit
    if run.schedule == "two-phase":
        return unit * kd if step < _KD_SHARE * run.steps else speech
    if run.schedule == "fade":
        weight *= 0.5 * (1 + math.cos(math.pi * step / run.steps))
    return speech + weight * kd


def _smooth(before: float, value: float) -> float:
    return value if math.isnan(before) else 0.98 * before + 0.02 * value


def _rate(step: int, steps: int) -> float:
    """As the trainer: up for a twentieth of the steps, then down along a cosine."""
    rise = max(1, steps // 20)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _save(path: Path, system: System, adam: torch.optim.Optimizer, average: Average, step: int, seconds: float) -> None:
    state = {
        "system": system.state_dict(),
        "adam": adam.state_dict(),
        "average": average.state,
        "step": step,
        "seconds": seconds,
    }
    write_atomically(path, lambda unfinished: torch.save(state, unfinished))


def load_student(path: Path) -> Denoiser:
    network = Denoiser(PRESETS["student"])
    network.load_state_dict(torch.load(path))
    return network.eval()


__all__ = ["Average", "Run", "System", "load_student", "measure_unit", "train"]
