"""What a run needs to go on after it was interrupted, in files that are whole or absent.

A run's folder has
    config.json         its arguments
    state/<step>.pt     the last two resumable states: weights, optimiser, schedule, random numbers, step
    model.safetensors   the weights of the network
    finished.json       written last: the run has nothing left to do, and its states are gone
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import nn

from ..errors import InputError

CONFIG_NAME, FINISHED_NAME, STATES_NAME = "config.json", "finished.json", "state"

# What may change between an interrupted run and its continuation without changing what is learned.
_FREE = frozenset(("out", "workers", "log_every", "save_every", "max_skipped"))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors of a file system that is full, read-only or gone become an InputError that names `path`."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"cannot write {path}: {error}; what was saved before is whole") from error


def make_parent(path: Path) -> None:
    """The folder of a file that will be written. Raises InputError."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """`write(unfinished)`, then that file becomes `path`: after a crash `path` is the old file or the new one."""
    unfinished = path.with_name(path.name + ".unfinished")
    with writing(path):
        try:
            write(unfinished)
            _sync(unfinished)
            os.replace(unfinished, path)
            _sync(path.parent)  # or else the renaming itself may be lost
        finally:
            unfinished.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=2, default=str) + "\n"
    write_atomically(path, lambda unfinished: unfinished.write_text(text))


class States:
    """The resumable states of a run, of which the last two are kept."""

    def __init__(self, run: Path) -> None:
        self.folder = run / STATES_NAME

    def save(self, step: int, state: dict[str, Any]) -> None:
        content = io.BytesIO()  # torch.save aborts the process when the file it writes to fails
        torch.save(state, content)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / f"{step:09}.pt", lambda path: path.write_bytes(content.getbuffer()))
        for outdated in self._files()[:-2]:
            outdated.unlink()

    def newest(self) -> dict[str, Any] | None:
        """The last state that can be read; None without any. It is numbers: loading it runs no code."""
        for path in reversed(self._files()):
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
                warnings.warn(f"{path} cannot be read, the state before it is taken: {error}", stacklevel=2)
        return None

    def remove(self) -> None:
        if self.folder.is_dir():
            shutil.rmtree(self.folder)  # with what a kill left unfinished

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.pt"))


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


def learned_state(system: nn.Module) -> dict[str, torch.Tensor]:
    """Trained parameters and the buffers that training changes: not those of a frozen teacher.

    The tensors are those of `system`: copying into them loads a state.
    """
    state = {name: parameter.data for name, parameter in system.named_parameters() if parameter.requires_grad}
    for name, module in system.named_modules():
        if module.training:
            prefix = f"{name}." if name else ""
            state |= {prefix + key: buffer for key, buffer in module.named_buffers(recurse=False)}
    return state


def load_learned_state(system: nn.Module, saved: dict[str, torch.Tensor], out: Path) -> None:
    own = learned_state(system)
    if own.keys() != saved.keys() or any(own[name].shape != saved[name].shape for name in own):
        raise InputError(f"--out: the state in {out} is of another network; choose another folder")
    for name, tensor in own.items():
        tensor.copy_(saved[name])


def random_state(device: torch.device) -> dict[str, Any]:
    """Of the generators that networks may draw from in this process, as types that weights_only loads."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "device": None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device),
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"], device)
