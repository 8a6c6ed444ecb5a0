"""What the folder of a run says of itself.

A run's folder has
    config.json         its arguments
    state/<step>.pt     the last two resumable states, of a finished run the last: weights, optimiser, schedule, random
                        numbers, step, and what the examples were made of
    model.safetensors   the network; with --ema the mean of its weights
    best.safetensors    the best network so far, by --valid
    finished.json       written last: the run has nothing left to do
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..options import TrainingOptions

CONFIG_NAME, FINISHED_NAME, STATES_NAME = "config.json", "finished.json", "state"
BEST_NAME = "best.safetensors"

# What may change between an interrupted run and its continuation without changing what is learned.
_FREE = frozenset(("out", "workers", "log_every", "save_every", "max_skipped", "data_moved", "compile"))
# With --data-moved, where the data lies.
_PLACES = frozenset(("clean", "noise", "rirs", "pairs", "noisy", "prepared", "valid", "init"))


def is_finished(out: Path) -> bool:
    """Whether the run in the folder `out` has done all its steps."""
    return (out / FINISHED_NAME).is_file()


def has_begun(out: Path) -> bool:
    """Whether the folder `out` holds a run that is finished or can be resumed."""
    return is_finished(out) or any((out / STATES_NAME).glob("*.pt"))


def check_same_run(out: Path, configuration: dict[str, Any]) -> None:
    """Raise InputError, naming an argument, if the run in `out` was begun with other arguments."""
    before = _configuration(out)
    now = json.loads(json.dumps(configuration, default=str))
    free = _FREE | (_PLACES if now.get("data_moved") else set())
    for name in sorted((before.keys() | now.keys()) - free):
        if before.get(name) != now.get(name) and not (name == "steps" and is_extended(out, now["steps"])):
            moved = "; --data-moved says that the data is the same" if name in _PLACES - {"init"} else ""
            raise InputError(
                f"--out: {out} holds a run with another --{name.replace('_', '-')}: {before.get(name)} there, "
                f"{now.get(name)} here; choose another folder, or the arguments in its {CONFIG_NAME}{moved}"
            )


def check_same_data(before: dict[str, str], now: dict[str, str], out: Path) -> None:
    """Raise InputError if the examples of the run in `out` were made of other files than there are now."""
    for argument in sorted(before.keys() | now.keys()):
        if before.get(argument) != now.get(argument):
            raise InputError(
                f"{argument}: the run in {out} has learned from other files: {before.get(argument)} then, "
                f"{now.get(argument)} now; going on would not be what the run would have been. Choose another folder, "
                "with --init for its weights"
            )


def is_extended(out: Path, steps: int) -> bool:
    """Whether the run in `out` has done all the steps that it was to do, and `steps` are more."""
    return is_finished(out) and steps > _configuration(out)["steps"]


def _configuration(out: Path) -> dict[str, Any]:
    try:
        return json.loads((out / CONFIG_NAME).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"--out: {out} holds a run, but its {CONFIG_NAME} cannot be read: {error}") from error


def is_done(options: TrainingOptions) -> bool:
    """Whether the run in --out has nothing left to do, which is printed. Raises InputError if it is another run."""
    if not has_begun(options.out):
        return False
    check_same_run(options.out, options.model_dump())
    if not is_finished(options.out):
        return False
    if is_extended(options.out, options.steps):
        if not any((options.out / STATES_NAME).glob("*.pt")):
            raise InputError(f"--steps: {options.out} is finished, and its state, from which it could go on, is gone")
        return False
    from .processes import processes  # takes seconds, and most errors need it not

    done = json.loads((options.out / FINISHED_NAME).read_text())["steps"]
    processes().print(f"{options.out} is finished: {done} steps are done")
    return True
