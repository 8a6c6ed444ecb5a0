"""One piece of a study, done in a process of its own. Its kinds are

prepared    mixtures for training
noisy       scores of the noisy input
teacher     training and scores of the teacher
unit        the KD weight at which a system's loss has as much gradient as the baseline's objective
student     training of a student, and its scores on the development set
test        its scores on the test set, maybe with a share of the noisy input mixed into its output

Whatever is there already is not made again.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from filelock import FileLock
from torch.utils.data import DataLoader

from ..data.examples import labelled_examples
from ..data.mixtures import Mixtures
from ..data.preparing import prepare
from ..errors import InputError
from ..evaluation.compare import evaluate
from ..evaluation.enhance import enhance
from ..evaluation.systems import UNPROCESSED
from ..network.load import load_network
from ..options import DistillOptions, EvaluateOptions, MixtureOptions, PrepareOptions, TrainOptions, samples
from ..training.batches import example_count
from ..training.distillation import Distillation, distill
from ..training.kd import build, parse
from ..training.objective import SpeechLoss
from ..training.supervised import train
from .config import Config, load
from .data import data_folder
from .runs import NOISY, TEACHER, Run, dry_file, mixtures_folder, scores_file, unit_file, unit_runs
from .tables import number, read_rows, write_rows

_EVALUATION_SEED = 12345


def work(config_path: Path, kind: str, run: Run | None, share: float, log: Path) -> None:
    """What a job's process does: all that it prints goes to `log`, an error ends it with status 1."""
    os.setsid()  # Ctrl-C reaches it through the runner alone
    with log.open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    torch.set_num_threads(1)
    try:
        _do(load(config_path), kind, run, share)
    except InputError as error:
        sys.exit(f"error: {error}")


def _do(config: Config, kind: str, run: Run | None, share: float) -> None:
    if run is None:
        with _alone(config.runs / kind):
            if kind == "prepared":
                _prepare(config)
                return
            if kind == TEACHER:
                train(teacher_options(config))
            for part in ("dev", "test"):
                _score(config, kind, part)
        return
    with _alone(config.runs / run.name):
        if kind == "unit":
            _measure_unit(config, run)
        elif kind == "student":
            distill(student_options(config, run))
            _score(config, run.name, "dev")
            _try_dry_shares(config, run.name)
        else:
            _score(config, run.name, "test", share)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Only one process at a time works in a run's folder: one that outlived its runner, say, or another runner's."""
    with FileLock(folder / "lock"):
        yield


def _prepare(config: Config) -> None:
    if mixtures_folder(config).exists():
        return
    prepare(
        PrepareOptions(
            out=mixtures_folder(config),
            count=config.data.prepared_count,
            segment_seconds=config.data.prepared_seconds,
            **_mixing(config, "train"),
        )
    )


def teacher_options(config: Config) -> TrainOptions:
    shared = _for_training(config, config.teacher.options)
    return TrainOptions(out=config.runs / TEACHER, preset=config.teacher.network, steps=config.teacher.steps, **shared)


def student_options(config: Config, run: Run) -> DistillOptions:
    weight = None if run.weight is None else run.weight * unit_of(config, run.system)
    return _distill_options(config, run, config.find(run.system).loss_at(weight))


def _distill_options(config: Config, run: Run, loss: tuple[str, ...]) -> DistillOptions:
    return DistillOptions(
        out=config.runs / run.name,
        teacher=str(config.runs / TEACHER),
        student=config.student.network,
        loss=loss,
        label_free=run.regime == "label-free",
        steps=run.steps or config.student.steps,
        seed=run.seed,
        **_for_training(config, config.student.options | config.find(run.system).options),
    )


def unit_of(config: Config, system: str) -> float:
    unit = config.find(system).unit
    if unit is not None:
        return unit
    (run,) = (run for run in unit_runs(config) if run.system == system)
    return number(read_rows(unit_file(config, run.name))[0]["unit"])


def _measure_unit(config: Config, run: Run, batches: int = 8) -> None:
    """A fresh student would not do: its mask hardly depends on its features yet."""
    options = _distill_options(config, run, config.find(run.system).weighted)
    baseline = Run(run.regime, config.baseline[run.regime], None, config.student.steps, run.seed)
    set_seed(run.seed)
    student = load_network(str(config.runs / baseline.name), "--config")
    teacher = load_network(options.teacher, "--config")
    specifications = [parse(text, 1.0) for text in options.loss]
    losses = build(specifications, student, teacher, options.student_layers, options.teacher_layers)
    system = Distillation(student, teacher.requires_grad_(False), losses, options.label_free).train()
    parameters = list(student.parameters())
    squares = {"speech": 0.0, "kd": 0.0}
    examples = labelled_examples(options, options.segment_length, example_count(options))
    loader = DataLoader(examples, options.batch_size)
    for batch in itertools.islice(loader, batches):
        outputs = system(batch)
        terms = {"speech": outputs["speech"], "kd": outputs["loss"] - outputs["speech"]}
        gradients = {
            name: torch.autograd.grad(term, parameters, retain_graph=name == "speech", allow_unused=True)
            for name, term in terms.items()
        }
        for of_speech, of_kd in zip(gradients["speech"], gradients["kd"], strict=True):
            if of_kd is not None:  # what the loss does not reach does not count
                squares["speech"] += of_speech.square().sum().item()
                squares["kd"] += of_kd.square().sum().item()
    if not squares["kd"] > 0:
        raise InputError(f"--config: system {run.system!r}: its loss has no gradient, so that no unit can be measured")
    write_rows(unit_file(config, run.name), [{"unit": f"{(squares['speech'] / squares['kd']) ** 0.5:.3g}"}])


def _for_training(config: Config, options: dict[str, Any]) -> dict[str, Any]:
    if config.data.prepared_count:
        return {"prepared": mixtures_folder(config), **options}
    return _mixing(config, "train") | options


def _mixing(config: Config, part: str) -> dict[str, Any]:
    folder = data_folder(config) / part
    return {"clean": folder / "speech", "noise": folder / "noise", **config.data.mixing}


def _score(config: Config, run: str, part: str, share: float = 0.0) -> None:
    """Per utterance; the noisy input, if that is the run."""
    path = scores_file(config, run, part, share)
    if path.exists():
        return
    is_noisy = run == NOISY
    scores = evaluate(
        EvaluateOptions(
            checkpoints=() if is_noisy else (str(config.runs / run),),
            metrics=config.evaluation.metrics,
            dry=share,
            count=_count(config, part),
            seconds=config.evaluation.seconds,
            seed=_EVALUATION_SEED,
            workers=0,
            csv=path.with_name("evaluation.csv"),
            **_mixing(config, part),
        )
    )
    (values,) = (values for system, values in scores.items() if (system == UNPROCESSED) == is_noisy)
    write_rows(
        path,
        [
            {"example": index, **dict(zip(values, row, strict=True))}
            for index, row in enumerate(zip(*values.values(), strict=True))
        ],
    )


@torch.inference_mode()
def _try_dry_shares(config: Config, run: str) -> None:
    if dry_file(config, run).exists():
        return
    network = load_network(str(config.runs / run), "--config").eval()
    options = MixtureOptions(**_mixing(config, "dev"))
    length = samples(config.evaluation.seconds)
    examples = Mixtures(options, length, _count(config, "dev"), _EVALUATION_SEED)
    objective, shares = SpeechLoss(), (0.0, *config.final.dry_shares)
    sums = dict.fromkeys(shares, 0.0)
    for index in range(len(examples)):
        noisy, clean = (examples[index][side] for side in ("noisy", "clean"))
        enhanced = enhance(network, noisy)
        for share in shares:
            sums[share] += objective(torch.lerp(enhanced, noisy, share)[None], clean[None]).item()
    rows = [{"share": f"{share:g}", "objective": total / len(examples)} for share, total in sums.items()]
    write_rows(dry_file(config, run), rows, decimals=5)


def _count(config: Config, part: str) -> int:
    return config.evaluation.dev_count if part == "dev" else config.evaluation.test_count
