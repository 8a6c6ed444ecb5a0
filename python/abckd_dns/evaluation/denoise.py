"""The command `denoise`: recordings in, enhanced recordings out."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data.audio import read_blocks, read_header
from ..data.sources import list_audio
from ..data.writing import Clipping, Format, choose_format, write_blocks
from ..errors import InputError, remark
from ..files import make_parent, printable
from ..network.device import best_device, describe_device
from ..network.load import load_network
from ..network.streaming import streaming
from ..options import DenoiseOptions
from .enhance import enhance_at


def denoise(options: DenoiseOptions) -> None:
    """Enhance every recording, whatever becomes of the others. Raises InputError at the end if one was bad."""
    network = load_network(options.checkpoint, "--checkpoint").to(best_device()).eval()
    if options.stream:
        network = streaming(network, "--stream")
    files = _targets(options.input, options.output)
    how = f"{'step by step' if options.stream else 'at once'}, {describe_device()}"
    bad = []
    for source, target in files.items():
        try:
            done = denoise_file(network, source, target, scale=options.scale_down)
        except Exception as error:  # of a bad file, or whatever a foreign network may raise
            why = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            name = printable(source)
            bad.append(why if name in why else f"{name}: {why}")
            if len(files) == 1:
                raise InputError(bad[0]) from error
            remark(f"not denoised: {bad[-1]}")
            continue
        print(
            f"{printable(done.path)}: {done.audio:.2f} s of audio, real-time factor {done.seconds / done.audio:.3f} "
            f"({how})",
            flush=True,
        )
    if len(files) > 1:
        print(f"{len(files) - len(bad)} of {len(files)} recordings denoised", flush=True)
    if bad:
        listed = "; ".join(bad[:10]) + ("; ..." if len(bad) > 10 else "")
        raise InputError(f"{len(bad)} of {len(files)} recordings could not be denoised: {listed}")


def _targets(source: Path, target: Path) -> dict[Path, Path]:
    """Where what is made of each recording goes."""
    if source.is_dir():
        if target.exists() and not target.is_dir():
            raise InputError(f"--output: expected a folder, as --input is one, but {printable(target)} is a file")
        if target.is_dir() and target.samefile(source):
            raise InputError(f"--output: {printable(target)} is --input itself, whose recordings would be lost")
        root = os.fspath(source)
        names = list_audio(source, "--input", leave_out=target)
        files = {Path(name): target / os.path.relpath(name, root) for name in names}
    elif source.is_file():
        files = {source: target / source.name if target.is_dir() else target}
    else:
        raise InputError(f"--input: {printable(source)} does not exist")
    for path, made in files.items():
        if made.exists() and made.samefile(path):
            raise InputError(f"--output: {printable(made)} is the recording itself, which would be lost")
    return files


class Denoised(NamedTuple):
    """The file that was written, the seconds that the recording lasts, and those that the network took."""

    path: Path
    audio: float
    seconds: float


def denoise_file(network: nn.Module, source: Path, target: Path, *, scale: bool = False) -> Denoised:
    """Keeps length, sample rate, channels and, where the format allows, the encoding of the samples.

    Raises InputError, and then leaves no new file.
    """
    header = read_header(source)
    form = choose_format(target, header)
    clock = _Clock()
    total = header.length and round(header.length / header.rate)
    bar = dict(desc=printable(source.name), total=total, leave=False, delay=5, bar_format=_BAR)
    progress = tqdm(**bar, mininterval=0.1 if sys.stderr.isatty() else 30)  # a log wants no line per block

    def enhanced() -> Iterable[Tensor]:
        clock.restart()
        progress.n = 0
        noisy = (torch.from_numpy(block).T for block in clock.outside(read_blocks(source), progress, header.rate))
        return clock.inside(enhance_at(network, noisy, header.rate))

    make_parent(form.path)
    with progress:
        clipping = write_blocks(form, header.channels, enhanced, header.rate, scale)
    if form.remark:
        remark(form.remark)
    _remark_clipping(form, clipping, scale)
    return Denoised(form.path, clock.samples / header.rate, clock.seconds)


_BAR = "{desc}: |{bar}| {n:.0f} of {total_fmt} s [{elapsed}<{remaining}]"


def _remark_clipping(form: Format, found: Clipping, scale: bool) -> None:
    if not found.beyond or form.holds_any_value:
        return
    what = f"{found.beyond} of {found.values} values beyond full scale, up to {found.peak:.2f}"
    done = "the whole was scaled down" if scale else "they were clipped; --scale-down scales the whole down instead"
    remark(f"{printable(form.path)}: {what}; {done}")


class _Clock:
    """Seconds in the network, without those that reading and writing take."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.seconds, self.samples, self._since = 0.0, 0, 0.0

    def outside(self, blocks: Iterable, progress: tqdm, rate: int) -> Iterator:
        """What the network asks for."""
        iterator = iter(blocks)
        while True:
            self.seconds += time.perf_counter() - self._since
            block = next(iterator, None)
            self._since = time.perf_counter()
            if block is None:
                return
            self.samples += len(block)
            progress.update(len(block) / rate)
            yield block

    def inside(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """What it gives."""
        iterator = iter(blocks)
        while True:
            self._since = time.perf_counter()
            block = next(iterator, None)
            self.seconds += time.perf_counter() - self._since
            if block is None:
                return
            yield block
