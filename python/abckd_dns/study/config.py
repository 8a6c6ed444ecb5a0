"""The study's configuration: one TOML file, checked before anything runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from ..errors import InputError
from ..evaluation.metrics import METRICS
from ..options import DistillOptions, MixtureOptions, Options, Place, Table, Texts, TrainOptions, describe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Regime = Literal["labels", "label-free"]
REGIMES: tuple[Regime, ...] = ("labels", "label-free")
Seeds = Annotated[tuple[int, ...], Field(min_length=1, strict=False)]
Share = Annotated[float, Field(gt=0, lt=1)]

# What the study itself decides about a run.
_DECIDED = frozenset(("out", "clean", "noise", "noisy", "teacher", "loss", "kd_weight", "label_free", "seed", "steps"))


# What the options must have, for the others to be checked.
_NEEDED = {
    MixtureOptions: {},
    TrainOptions: {"out": Path("run")},
    DistillOptions: {"out": Path("run"), "teacher": "teacher"},
}


class Data(Table):
    folder: Place | None = None
    """With train/, dev/ and test/, each with speech/ and noise/; absent: what fetch-study-data gets."""
    prepared_count: NonNegativeInt = 0
    """Mixtures that are made once and trained on in epochs; 0: new ones all the time, which takes longer."""
    prepared_seconds: PositiveFloat = 2.0
    """Length of such a mixture."""
    mixing: dict[str, Any] = {}
    """Options of the mixtures of all parts: snr, level, ..."""


class Training(Table):
    network: str
    """As --preset of train: teacher, student, or package.module:factory."""
    steps: PositiveInt
    options: dict[str, Any] = {}
    """Other options of `abckd-dns train` and `distill`, with underscores: batch_size, segment_seconds, lr, snr, ..."""


class Evaluation(Table):
    dev_count: PositiveInt
    """Mixtures of the development set."""
    test_count: PositiveInt
    """Mixtures of the test set."""
    seconds: PositiveFloat = 4.0
    """Length of a mixture."""
    metrics: Texts = ("si-sdr", "pesq", "stoi")
    """As --metrics of evaluate."""
    select: str = "PESQ-WB"
    """Column of the scores: on the development set it chooses weights and finalists."""


class Grid(Table):
    weights: Annotated[tuple[PositiveFloat, ...], Field(min_length=1, strict=False)]
    """KD weights, the same for every loss, in units of a system's `unit`."""
    seeds: Seeds
    steps: PositiveInt | None = None
    """Training steps in the grid; absent: those of the student."""


class Final(Table):
    seeds: Seeds
    finalists: PositiveInt
    """How many systems of a regime are compared, besides the baseline and those with `always`: the best of the grid."""
    dry_shares: Annotated[tuple[Share, ...], Field(strict=False)] = (
        *(0.01, 0.02, 0.03, 0.05, 0.07),
        *(0.1, 0.15, 0.2, 0.3),
    )
    """Shares of the noisy input that the control 'dry mix at equal loss' tries."""


class System(Table):
    name: str
    loss: Annotated[Texts, BeforeValidator(lambda loss: (loss,) if isinstance(loss, str) else loss)]
    """As --loss of distill: one or several of NAME(key=value,...)=WEIGHT. Those without a weight get the grid's."""
    regimes: Annotated[tuple[Regime, ...], Field(strict=False)] = REGIMES
    unit: PositiveFloat | None = None
    """The grid's weights are multiples of this. Absent: measured, as the weight at which the loss has a gradient of the
    same norm as the baseline's objective, at the baseline's first student; losses differ in scale by powers of ten."""
    always: bool = False
    """Is a finalist whatever the grid says: a control."""
    options: dict[str, Any] = {}
    """As those of the student, for this system alone: student_layers, teacher_layers, ..."""

    @property
    def has_grid(self) -> bool:
        return bool(self.weighted)

    @property
    def weighted(self) -> tuple[str, ...]:
        """The losses that get the grid's weights."""
        return tuple(loss for loss in self.loss if _takes_weight(loss))

    def loss_at(self, weight: float | None) -> tuple[str, ...]:
        """The losses as --loss takes them."""
        return tuple(f"{loss}={weight:g}" if loss in self.weighted else loss for loss in self.loss)


def _takes_weight(loss: str) -> bool:
    return loss != "none" and "=" not in loss.rpartition(")")[2]


class Config(Table):
    data: Data = Data()
    runs: Place
    """Folder of the runs: checkpoints, logs. Large."""
    results: Place
    """Folder of the CSV files, tables and plots. Small enough to commit."""
    teacher: Training
    student: Training
    evaluation: Evaluation
    baseline: dict[Regime, str]
    """Of each regime: the system that the others are compared with."""
    noise_seeds: Seeds
    """Seeds of the baselines, by which the noise of seeds is measured first."""
    grid: Grid
    final: Final
    system: Annotated[tuple[System, ...], Field(strict=False)]

    @property
    def regimes(self) -> tuple[Regime, ...]:
        return tuple(regime for regime in REGIMES if regime in self.baseline)

    def systems(self, regime: Regime) -> list[System]:
        return [system for system in self.system if regime in system.regimes]

    def find(self, name: str) -> System:
        return next(system for system in self.system if system.name == name)


def load(path: Path) -> Config:
    """The configuration in a file; relative folders in it are relative to the current folder, as on a command line."""
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise InputError(f"--config: cannot read {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"--config: {path} is not TOML: {error}") from error
    try:
        config = Config.model_validate(table)
    except ValidationError as error:
        raise InputError(f"--config: {path}: {describe(error, _dotted)}") from error
    _check(config, path)
    return config


def _dotted(place: Sequence[str | int]) -> str:
    return ".".join(map(str, place))


def _check(config: Config, path: Path) -> None:
    """What concerns more than one key."""

    def fail(message: str) -> None:
        raise InputError(f"--config: {path}: {message}")

    names = [system.name for system in config.system]
    if doubled := {name for name in names if names.count(name) > 1}:
        fail(f"system: {len(names)} systems, but more than one named {', '.join(sorted(doubled))}")
    if not config.baseline:
        fail("baseline: names a system for none of " + ", ".join(REGIMES))
    for regime, name in config.baseline.items():
        if name not in [system.name for system in config.systems(regime)]:
            fail(f"baseline.{regime}: expected the name of a system of this regime, got {name!r}")
        if config.find(name).has_grid:
            fail(f"baseline.{regime}: {name!r} needs a loss with a fixed weight, got {config.find(name).loss}")
    for system in config.system:
        for regime in set(system.regimes) - set(config.baseline):
            fail(f"baseline: {regime} is missing, a regime of the system {system.name!r}")
        if "label-free" in system.regimes and "none" in system.loss:
            fail(f"system {system.name!r}: without labels the loss 'none' leaves nothing to learn from")
    for name in config.evaluation.metrics:
        if name not in METRICS:
            fail(f"evaluation.metrics: expected some of {', '.join(METRICS)}, got {name!r}")
    columns = [column for name in config.evaluation.metrics for column in METRICS[name].columns]
    if config.evaluation.select not in columns:
        fail(f"evaluation.select: expected one of {', '.join(columns)}, got {config.evaluation.select!r}")
    for where, kind, options in (
        ("data.mixing", MixtureOptions, config.data.mixing),
        ("teacher.options", TrainOptions, config.teacher.options),
        ("student.options", DistillOptions, config.student.options),
        *((f"system {system.name!r}: options", DistillOptions, system.options) for system in config.system),
    ):
        known = kind.model_fields.keys() - _DECIDED
        for key in options:
            if key not in known:
                fail(f"{where}.{key} is none of {', '.join(sorted(known))}")
        if fault := _fault(kind, options, where):
            fail(fault)


def _fault(kind: type[Options], options: dict[str, Any], where: str) -> str:
    """What is wrong with values of options, "" if nothing."""
    try:
        kind(**_NEEDED[kind], **options)
    except InputError as error:
        if isinstance(error.__cause__, ValidationError):
            return describe(error.__cause__, lambda place: f"{where}.{_dotted(place)}")
        return f"{where}: {error}"
    return ""
