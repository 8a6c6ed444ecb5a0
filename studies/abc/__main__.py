"""python -m studies.abc COMMAND: everything of this study; README.md says in which order."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from abckd_dns.data.preparing import prepare
from abckd_dns.training.supervised import train

from . import cache, confirm, diagnose, queue, report, scoring
from .package import (
    RIVALS,
    InputError,
    PrepareOptions,
    TrainOptions,
    deepfilter,
    fetch_study_data,
    load_network,
    save_checkpoint,
    wheels,
)
from .segments import MIXTURES

_SECONDS = 4.0
_TEACHER = Path(__file__).parent / "weights" / "teacher.safetensors"


def _prepare(places: queue.Places, arguments: argparse.Namespace) -> None:
    """Data, training mixtures, and what the teachers say of them: about half an hour of one core."""
    train_side = fetch_study_data() / "train"
    sides = {"clean": train_side / "speech", "noise": train_side / "noise"}
    if not places.mixtures.exists():
        prepare(PrepareOptions(out=places.mixtures, count=MIXTURES, segment_seconds=_SECONDS, seed=1, **sides))
    for part in scoring.COUNTS:
        scoring.Scored(part, places.scored)
    teachers: dict[str, Callable] = {"deepfilter": cache.deepfilter_teacher}
    if _TEACHER.exists():
        teachers["own"] = partial(cache.own_teacher, _TEACHER)
    for name, teacher in teachers.items():
        if not (places.cache(name) / "manifest.json").exists() and name in (arguments.teacher or teachers):
            cache.make(*teacher(), places.mixtures, places.cache(name), MIXTURES)


def _teacher(places: queue.Places, arguments: argparse.Namespace) -> None:
    """Train the teacher of studies/abckd.toml anew (its committed weights are what is used)."""
    train_side = fetch_study_data() / "train"
    mixtures = places.folder / "mixtures_study"
    if not mixtures.exists():
        sides = {"clean": train_side / "speech", "noise": train_side / "noise"}
        prepare(PrepareOptions(out=mixtures, count=20_000, segment_seconds=1.5, **sides))
    options = dict(steps=8000, batch_size=8, segment_seconds=1.0, lr=2e-3, workers=0, save_every=200)
    train(TrainOptions(out=places.folder / "teacher", preset="teacher", prepared=mixtures, precision="bf16", **options))


def _publish_teacher(places: queue.Places, arguments: argparse.Namespace) -> None:
    """Put the trained teacher's weights, in half precision, where git has them."""
    network = load_network(str(places.folder / "teacher"), "--folder")
    _TEACHER.parent.mkdir(exist_ok=True)
    save_checkpoint(_TEACHER, network.half())
    print(f"{_TEACHER.name}: {_TEACHER.stat().st_size / 1e6:.2f} MB")


def _public(places: queue.Places, arguments: argparse.Namespace) -> None:
    """Score public denoisers, the own teacher and students without KD on the study's test mixtures (or --part dev)."""
    makers: dict[str, Callable] = {"noisy": lambda: lambda waveform: waveform}
    for rival in RIVALS.values():
        wheels.fetch(*rival.wheels)
        makers[rival.title] = rival.make
    if _TEACHER.exists():
        makers["own teacher, 8000 steps"] = lambda: _denoise(load_network(str(_TEACHER), "--checkpoint").eval())
    for steps in (750, 1500):
        student = places.run(queue.Run("", "labels", "none", 0.0, "constant", steps, 0)) / "average.pt"
        if student.exists():
            makers[f"student, no KD, {steps} steps"] = partial(_student, student)
    path = queue.RESULTS / f"public_{arguments.part}.csv"
    scoring.score_table(makers, scoring.Scored(arguments.part, places.scored), path)
    print(scoring.summary(path))


def _student(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    from .rig import load_student

    return _denoise(load_student(path))


def _denoise(network: torch.nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    @torch.inference_mode()
    def denoise(noisy: np.ndarray) -> np.ndarray:
        return network(torch.from_numpy(noisy)[None])[0].numpy()

    return denoise


def _check_teacher(places: queue.Places, arguments: argparse.Namespace) -> None:
    """How far this project's DeepFilterNet3 agrees with its own library, in dB, on ten mixtures."""
    wheels.fetch(wheels.DEEPFILTER, wheels.DEEPFILTER_LIBRARY)
    network, mixtures = deepfilter.DeepFilter(), scoring.Scored("dev", places.scored)
    for noisy in mixtures.noisy[:10]:
        own, library = network(noisy).waveform, deepfilter.by_library(noisy)
        print(f"{10 * np.log10(np.square(library).sum() / np.square(own - library).sum()):.1f} dB")


def _run(places: queue.Places, arguments: argparse.Namespace) -> None:
    """Work through the queue; interrupted or killed, the same command goes on."""
    queue.work_through(arguments.queue, places, arguments.jobs)


def _diagnose(places: queue.Places, arguments: argparse.Namespace) -> None:
    """Write results/{maps,errors,gradients}.csv for a teacher."""
    losses = arguments.loss or list(diagnose.LOSSES)
    late = places.run(queue.Run("", "labels", "none", 0.0, "constant", diagnose.LATE, 0)) / "average.pt"
    for teacher in arguments.teacher or ["deepfilter"]:
        diagnose.write("maps.csv", diagnose.maps(teacher, places), queue.RESULTS)
        if late.exists():
            diagnose.write("errors.csv", diagnose.errors(teacher, places, late), queue.RESULTS)
        for rows in diagnose.gradients(teacher, places, losses):
            diagnose.write("gradients.csv", rows, queue.RESULTS, key=("loss", "when"))


def _report(places: queue.Places, arguments: argparse.Namespace) -> None:
    """Print the runs as a table, each beside the baseline and beside attention transfer."""
    print(report.table(queue.RESULTS))


def _confirm(places: queue.Places, arguments: argparse.Namespace) -> None:
    """Fetch the confirmation data and check them against the committed manifest. Scores nothing."""
    print(confirm.check())


_COMMANDS = {
    "prepare": _prepare,
    "teacher": _teacher,
    "publish-teacher": _publish_teacher,
    "public": _public,
    "check-teacher": _check_teacher,
    "run": _run,
    "diagnose": _diagnose,
    "report": _report,
    "confirmation-data": _confirm,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.abc", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in _COMMANDS.items():
        command = commands.add_parser(name, help=function.__doc__)
        command.add_argument("--folder", type=Path, default=Path("study_runs/abc"), help="where large data lie")
        command.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
        command.add_argument("--queue", type=Path, default=Path(__file__).with_name("queue.toml"))
        command.add_argument("--teacher", action="append", help="deepfilter or own; both by default")
        command.add_argument("--loss", action="append", help="of diagnose")
        command.add_argument("--part", choices=list(scoring.COUNTS), default="test", help="of public")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    try:
        _COMMANDS[arguments.command](queue.Places(arguments.folder), arguments)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
