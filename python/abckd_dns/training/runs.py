"""What the folder of a run says of itself.

A run's folder has
    config.json         its arguments
    state/<step>.pt     the last two resumable states: weights, optimiser, schedule, random numbers, step
    model.safetensors   the weights of the network
    finished.json       written last: the run has nothing left to do, and its states are gone
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..options import TrainingOptions

CONFIG_NAME, FINISHED_NAME, STATES_NAME = "config.json", "finished.json", "state"

# What may change between an interrupted run and its continuation without changing what is learned.
_FREE = frozenset(("out", "workers", "log_every", "save_every", "max_skipped"))


def is_finished(out: Path) -> bool:
    """Whether the run in the folder `out` has done all its steps."""
    return (out / FINISHED_NAME).is_file()


def has_begun(out: Path) -> bool:
    """Whether the folder `out` holds a run that is finished or can be resumed."""
    return is_finished(out) or any((out / STATES_NAME).glob("*.pt"))


def check_same_run(out: Path, configuration: dict[str, Any]) -> None:
    """Raise InputError, naming an argument, if the run in `out` was begun with other arguments."""
    try:
        before = json.loads((out / CONFIG_NAME).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"--out: {out} holds a run, but its {CONFIG_NAME} cannot be read: {error}") from error
    now = json.loads(json.dumps(configuration, default=str))
    for name in sorted((before.keys() | now.keys()) - _FREE):
        if before.get(name) != now.get(name):
            raise InputError(
                f"--out: {out} holds a run with another --{name.replace('_', '-')}: {before.get(name)} there, "
                f"{now.get(name)} here; choose another folder, or the arguments in its {CONFIG_NAME}"
            )


def is_done(options: TrainingOptions) -> bool:
    """Whether the run in --out has nothing left to do, which is printed. Raises InputError if it is another run."""
    if not has_begun(options.out):
        return False
    check_same_run(options.out, options.model_dump())
    if is_finished(options.out):
        from .processes import processes  # takes seconds, and most errors need it not

        processes().print(f"{options.out} is finished: {options.steps} steps are done")
    return is_finished(options.out)
