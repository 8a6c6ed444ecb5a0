"""The resumable states of a run: weights, optimiser, schedule, random numbers, step."""

from __future__ import annotations

import io
import pickle
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import InputError
from ..files import write_atomically, writing
from .runs import STATES_NAME


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

    def keep_last(self) -> None:
        """Remove all but the newest, with what a kill left unfinished."""
        kept = self._files()[-1:]
        for path in self.folder.glob("*"):
            if path not in kept:
                path.unlink()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.pt"))


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
