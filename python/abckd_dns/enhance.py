"""Running a trained network on recordings, and the command `denoise`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch
from torch import Tensor, nn

from .audio import list_audio, read, resample, write
from .errors import InputError
from .networks import load_network
from .stft import SAMPLE_RATE


@dataclass(kw_only=True)
class DenoiseOptions:
    """Denoise a recording, or every recording of a folder, of any length, sample rate and number of channels.

    The networks work at 16 kHz: what a recording has above 8 kHz is lost.
    """

    checkpoint: str
    """Checkpoint (a file, or the folder of a run), or package.module:factory@checkpoint."""
    input: Path
    """Noisy file or folder."""
    output: Path
    """Enhanced file or folder; the format is that of the suffix."""


def denoise(options: DenoiseOptions) -> None:
    network = load_network(options.checkpoint, "--checkpoint").to(best_device()).eval()
    if not options.input.is_dir():
        if not options.input.is_file():
            raise InputError(f"--input: {options.input} does not exist")
        denoise_file(network, options.input, options.output)
        return
    for path in list_audio(options.input, "--input"):
        denoise_file(network, path, options.output / path.relative_to(options.input))


def denoise_file(network: nn.Module, source: Path, target: Path) -> None:
    """Keeps length, sample rate, channels and, where the format allows, the encoding of the samples."""
    noisy, rate = read(source)
    enhanced = resample(enhance(network, resample(noisy, rate, SAMPLE_RATE)), SAMPLE_RATE, rate)
    length = noisy.shape[-1]
    enhanced = torch.nn.functional.pad(enhanced, (0, max(0, length - enhanced.shape[-1])))[:, :length]
    subtype = soundfile.info(source).subtype
    same_format = source.suffix.lower() == target.suffix.lower()
    target.parent.mkdir(parents=True, exist_ok=True)
    write(target, enhanced, rate, subtype if same_format else None)


@torch.inference_mode()
def enhance(network: nn.Module, noisy: Tensor) -> Tensor:
    """Noisy waveform (N,) or (channels, N) at 16 kHz to the enhanced one, on the CPU; each channel alone."""
    device = next(network.parameters()).device
    return network(noisy.to(device).view(-1, noisy.shape[-1])).view_as(noisy).float().cpu()


def best_device() -> torch.device:
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
