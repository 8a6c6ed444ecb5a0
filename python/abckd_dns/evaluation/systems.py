"""What is compared: networks, public denoisers, and folders of what other programs made."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import time
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..constants import SAMPLE_RATE
from ..data.audio import read_speech
from ..data.pairs import Counterparts
from ..errors import InputError
from ..files import printable
from ..network.describe import macs_per_second
from ..network.device import best_device
from ..network.load import load_network
from ..network.masking import MaskNetwork
from ..network.names import CHECKPOINT_NAME, parse_name
from ..network.streaming import LATENCY
from ..options import EvaluateOptions
from .enhance import enhance

UNPROCESSED = "noisy input"

_FARTHEST = SAMPLE_RATE // 2  # samples that a delay may have
_ALIGNED_BY = 60 * SAMPLE_RATE  # samples that are looked at
_WHITENED = 0.7
_MISSING = SAMPLE_RATE // 4  # samples that another program may leave out at the end


class Costs(NamedTuple):
    """Of a system, where known: parameters, multiply-accumulate operations per second of sound, seconds of latency."""

    parameters: int | None = None
    macs: float | None = None
    latency: float | None = None


class Output(NamedTuple):
    """What a system makes of an example: a waveform (N,), aligned with the noisy one, the seconds that it took, and
    the delay in samples that was taken off; the last two where there are any."""

    waveform: Tensor
    seconds: float | None = None
    delay: int | None = None


class System(Protocol):
    """It goes to the worker processes without what it has loaded, which each of them loads for itself."""

    def costs(self) -> Costs: ...

    def identity(self) -> str:
        """What its output depends on."""

    def run(self, noisy: Tensor, name: str) -> Output:
        """`noisy` is (N,) at 16 kHz, the example called `name`. Raises InputError."""


class NetworkSystem:
    """A network of this project or of its user."""

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = checkpoint
        self._network: nn.Module | None = None
        self._costs = Costs()

    def __getstate__(self) -> dict:
        return {**vars(self), "_network": None}

    def load(self) -> nn.Module:
        if self._network is None:
            network = load_network(self.checkpoint, "--checkpoints").eval()
            self._costs = _costs_of(network)
            self._network = network.to(best_device())
        return self._network

    def costs(self) -> Costs:
        self.load()
        return self._costs

    def identity(self) -> str:
        name = parse_name(self.checkpoint, "--checkpoints")
        files = [name.checkpoint] if name.checkpoint is not None else []
        if name.factory is not None:
            spec = importlib.util.find_spec(name.factory[0])
            files += [Path(spec.origin)] if spec is not None and spec.origin else []
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()]
        return " ".join((self.checkpoint, *digests))

    def run(self, noisy: Tensor, name: str) -> Output:
        network = self.load()
        start = time.perf_counter()
        return Output(enhance(network, noisy), time.perf_counter() - start)


def _costs_of(network: nn.Module) -> Costs:
    parameters = sum(parameter.numel() for parameter in network.parameters())
    try:
        macs = macs_per_second(network)
    except Exception:  # whatever a foreign network may raise for sound of another length
        macs = None
    return Costs(parameters, macs, LATENCY / SAMPLE_RATE if isinstance(network, MaskNetwork) else None)


class RivalSystem:
    """A public denoiser."""

    def __init__(self, name: str) -> None:
        try:
            from ..rivals.denoisers import RIVALS
        except ImportError as error:
            raise InputError(f"--systems needs onnxruntime: pip install 'abckd-kernels[rivals]' ({error})") from error
        self.rival, self.key = RIVALS[name], name
        self._denoise = self.rival.make()  # an error now, not from a worker process

    def __getstate__(self) -> dict:
        return {"key": self.key}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["key"])

    def costs(self) -> Costs:
        return Costs(self.rival.parameters, self.rival.macs, self.rival.latency)

    def identity(self) -> str:
        return " ".join((self.key, *(wheel.sha256 for wheel in self.rival.wheels)))

    def run(self, noisy: Tensor, name: str) -> Output:
        start = time.perf_counter()
        waveform = self._denoise(noisy.numpy())
        return Output(torch.from_numpy(np.asarray(waveform, np.float32)), time.perf_counter() - start)


class FolderSystem:
    """A folder of what another program made, under the names of the noisy recordings."""

    def __init__(self, folder: Path, cut: bool) -> None:
        self.folder, self.cut = folder, cut
        self.files = Counterparts(folder, "--enhanced")

    def costs(self) -> Costs:
        return Costs()

    def identity(self) -> str:
        return f"{self.folder} {stamp_of(self.files.files)}"

    def run(self, noisy: Tensor, name: str) -> Output:
        path = self.files.find(name)
        if path is None:
            raise InputError(f"--enhanced: {printable(self.folder)} has no file for {name}")
        enhanced = read_speech(path)
        delay = find_delay(enhanced, noisy)
        aligned = enhanced[delay:] if delay >= 0 else torch.nn.functional.pad(enhanced, (-delay, 0))
        missing = len(noisy) - len(aligned)
        if missing > _MISSING and not self.cut:
            raise InputError(
                f"--enhanced: {printable(path)} ends {missing / SAMPLE_RATE:.2f} s before the noisy recording; "
                "--cut leaves out what is missing"
            )
        if missing > 0 and not self.cut:
            aligned = torch.nn.functional.pad(aligned, (0, missing))
        return Output(aligned[: len(noisy)], delay=delay)


def find_delay(later: Tensor, reference: Tensor) -> int:
    """Samples by which one waveform lies behind another, at most half a second either way: where they correlate most,
    of whichever sign. 0 unless another delay is clearly better."""
    count = min(len(later), len(reference), _ALIGNED_BY)
    a, b = (waveform[:count].double().numpy() for waveform in (later, reference))
    size = 1 << (2 * count - 1).bit_length()
    spectrum = np.fft.rfft(a, size) * np.conj(np.fft.rfft(b, size))
    # Partly whitened, which makes the peak of speech narrow (Knapp, Carter, 1976, for the whole of it).
    correlation = np.abs(np.fft.irfft(spectrum / np.maximum(np.abs(spectrum), 1e-20) ** _WHITENED, size))
    farthest = min(_FARTHEST, count - 1)
    candidates = np.concatenate((correlation[-farthest:] if farthest else [], correlation[: farthest + 1]))
    best = int(candidates.argmax()) - farthest
    return best if candidates.max() > 1.02 * correlation[0] else 0


def stamp_of(files: list[str]) -> str:
    """A digest of names, sizes and dates."""
    digest = hashlib.sha256()
    for path in files:
        try:
            status = os.stat(path)
            digest.update(f"{printable(path)} {status.st_size} {status.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(f"{printable(path)} is not there\n".encode())
    return digest.hexdigest()


def make_systems(options: EvaluateOptions) -> dict[str, System]:
    """Of each name in the table, what it is, loaded. Raises InputError."""
    found: list[tuple[str, System]] = []
    for name, checkpoint in zip(_unique_names(options.checkpoints), options.checkpoints, strict=True):
        system = NetworkSystem(checkpoint)
        system.load()
        found.append((name, system))
    for key in options.systems:
        rival = RivalSystem(key)
        found.append((rival.rival.title, rival))
    for given in options.enhanced:
        name, equals, folder = given.partition("=")
        if not equals or Path(given).is_dir():
            name, folder = Path(given).name or given, given
        found.append((name, FolderSystem(Path(folder), options.cut)))
    names = [UNPROCESSED, *(name for name, _ in found)]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two systems are called {name!r}; name a folder otherwise: --enhanced NAME=FOLDER")
    if options.enhanced and options.pairs is None and options.noisy is None:
        raise InputError("--enhanced: needs recordings with names, --pairs or --noisy")
    return dict(found)


def _unique_names(checkpoints: tuple[str, ...]) -> list[str]:
    """The name of the run's folder or of the file; the whole checkpoint where that is not unique."""
    paths = [Path(name).parent if Path(name).name == CHECKPOINT_NAME else Path(name) for name in checkpoints]
    short = [path.name.removesuffix(Path(CHECKPOINT_NAME).suffix) for path in paths]
    return [name if short.count(name) == 1 else whole for name, whole in zip(short, checkpoints, strict=True)]
