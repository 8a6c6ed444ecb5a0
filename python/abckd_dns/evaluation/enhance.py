"""Running a trained network on recordings, and the command `denoise`."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor, nn

from ..constants import SAMPLE_RATE
from ..data.audio import read, read_header, resample, write
from ..data.sources import list_audio
from ..errors import InputError
from ..files import make_parent
from ..network.device import best_device, describe_device
from ..network.load import load_network
from ..network.streaming import streaming
from ..options import DenoiseOptions


def denoise(options: DenoiseOptions) -> None:
    network = load_network(options.checkpoint, "--checkpoint").to(best_device()).eval()
    if options.stream:
        network = streaming(network, "--stream")
    if options.input.is_dir():
        files = {
            path: options.output / path.relative_to(options.input) for path in list_audio(options.input, "--input")
        }
    elif options.input.is_file():
        if options.output.is_dir():
            raise InputError(f"--output: expected a file, as --input is one, but {options.output} is a folder")
        files = {options.input: options.output}
    else:
        raise InputError(f"--input: {options.input} does not exist")
    for source, target in files.items():
        if target.exists() and target.samefile(source):
            raise InputError(f"--output: {target} is the recording itself, which would be lost")
    how = f"{'step by step' if options.stream else 'at once'}, {describe_device()}"
    for source, target in files.items():
        audio, seconds = denoise_file(network, source, target)
        print(f"{target}: {audio:.2f} s of audio, real-time factor {seconds / audio:.3f} ({how})")


def denoise_file(network: nn.Module, source: Path, target: Path) -> tuple[float, float]:
    """Keeps length, sample rate, channels and, where the format allows, the encoding of the samples.

    Returns the seconds that the recording lasts and those that the network took.
    """
    noisy, rate = read(source)
    at_network_rate = resample(noisy, rate, SAMPLE_RATE)
    start = time.perf_counter()
    enhanced = enhance(network, at_network_rate)
    seconds = time.perf_counter() - start
    enhanced = resample(enhanced, SAMPLE_RATE, rate)
    length = noisy.shape[-1]
    enhanced = torch.nn.functional.pad(enhanced, (0, max(0, length - enhanced.shape[-1])))[:, :length]
    same_format = source.suffix.lower() == target.suffix.lower()
    make_parent(target)
    write(target, enhanced, rate, read_header(source).subtype if same_format else None)
    return length / rate, seconds


@torch.inference_mode()
def enhance(network: nn.Module, noisy: Tensor) -> Tensor:
    """Noisy waveform (N,) or (channels, N) at 16 kHz to the enhanced one, on the CPU; each channel alone."""
    device = next(network.parameters()).device
    return network(noisy.to(device).view(-1, noisy.shape[-1])).view_as(noisy).float().cpu()
