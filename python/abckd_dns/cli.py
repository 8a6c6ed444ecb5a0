"""The command abckd-dns. What a command needs is imported when it runs: help and errors of arguments come at once."""

from __future__ import annotations

import importlib
import io
import sys
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import tyro

from .early import has_nothing_to_do
from .errors import InputError
from .options import (
    DemoOptions,
    DenoiseOptions,
    DescribeOptions,
    DistillOptions,
    EvaluateOptions,
    ExportOptions,
    FetchDemoDataOptions,
    FetchStudyDataOptions,
    Options,
    PrepareOptions,
    TrainOptions,
)
from .study.options import StudyOptions

# The options of each command, and the function that takes them.
_COMMANDS: dict[str, tuple[type[Options], str]] = {
    "prepare": (PrepareOptions, "data.preparing:prepare"),
    "train": (TrainOptions, "training.supervised:train"),
    "distill": (DistillOptions, "training.distillation:distill"),
    "evaluate": (EvaluateOptions, "evaluation.compare:evaluate"),
    "denoise": (DenoiseOptions, "evaluation.denoise:denoise"),
    "export": (ExportOptions, "deployment.export:export"),
    "describe": (DescribeOptions, "network.describe:describe"),
    "fetch-demo-data": (FetchDemoDataOptions, "demo.data:print_demo_data"),
    "demo": (DemoOptions, "demo.run:demo"),
    "fetch-study-data": (FetchStudyDataOptions, "study.data:print_study_data"),
    "study": (StudyOptions, "study.runner:study"),
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command that `arguments` (by default those of the process) name."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of ASCII, or names that are not UTF-8, end no run
            stream.reconfigure(errors="backslashreplace")
    options_of = [Annotated[options, tyro.conf.subcommand(name)] for name, (options, _) in _COMMANDS.items()]
    try:
        options = tyro.cli(
            Union[tuple(options_of)],  # noqa: UP007 - a union of values
            prog="abckd-dns",
            description="Train, distil, evaluate, run and export speech noise suppressors.",
            args=_gather_repeated(sys.argv[1:] if arguments is None else arguments),
        )
        if not has_nothing_to_do(options):
            _function_for(options)(options)
    except KeyboardInterrupt:
        sys.exit(130)  # what a shell expects of a program that was interrupted
    except InputError as error:
        # An error from a worker process arrives with that process's traceback in front of it.
        message = str(error).strip().rpartition(f"{InputError.__module__}.{InputError.__name__}: ")[2]
        sys.exit(f"abckd-dns: error: {message}")


def _function_for(options: Options):
    (path,) = (path for kind, path in _COMMANDS.values() if kind is type(options))
    module, _, function = path.partition(":")
    return getattr(importlib.import_module(f"{__package__}.{module}"), function)


def _gather_repeated(arguments: list[str]) -> list[str]:
    """`--loss a --loss b` as `--loss a b`: of a flag that comes twice the parser would forget all but the last.

    Raises InputError where the flag has one value.
    """
    several, single = _flags()
    group: list[str] = []  # a flag and its values
    groups, first = [group], {}
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        flag = flag.replace("_", "-") if flag.startswith("--") else flag
        if flag in first:
            if flag not in several:
                raise InputError(f"{flag}: it is given twice, and has one value")
            group = first[flag]
            group += [value] * bool(equals)
        elif argument.startswith("--"):
            group = [argument]
            groups.append(group)
            if flag in several or flag in single:
                first[flag] = group
        else:
            group.append(argument)
    return [argument for group in groups for argument in group]


def _flags() -> tuple[set[str], set[str]]:
    """The flags of any number of values, in whichever command, and the others."""
    several, single = set(), set()
    for options, _ in _COMMANDS.values():
        for name, field in options.model_fields.items():
            flag = f"--{name.replace('_', '-')}"
            (several if _takes_several(field.annotation) else single).add(flag)
    return several, single - several


def _takes_several(annotation: Any) -> bool:
    """Of a type: `tuple[X, ...]`, alone, annotated or in a union."""
    if get_origin(annotation) is tuple:
        return get_args(annotation)[-1] is Ellipsis
    if get_origin(annotation) is Annotated:
        return _takes_several(get_args(annotation)[0])
    return get_origin(annotation) in (Union, UnionType) and any(map(_takes_several, get_args(annotation)))
