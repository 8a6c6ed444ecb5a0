"""Generated audio, and the arguments that most commands share."""

from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000

SHORT = "--steps 2 --batch-size 2 --segment-seconds 0.5 --workers 0 --log-every 1".split()


def data_arguments(folders: Path) -> list[str]:
    return ["--clean", str(folders / "clean"), "--noise", str(folders / "noise")]


def speech_like(seconds: float, seed: int, rate: int = RATE) -> np.ndarray:
    """Harmonics of a wandering pitch in syllables: enough structure to be told from noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    pitch = 120 + 60 * rng.random() + 20 * np.sin(2 * np.pi * (0.5 + rng.random()) * time)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    harmonics = sum(np.sin(k * phase) / k for k in range(1, 12))
    syllables = np.clip(np.sin(2 * np.pi * 3 * time + 6 * rng.random()) + 0.3, 0, 1)
    return (0.1 * harmonics * syllables).astype(np.float32)


def noise_like(seconds: float, seed: int, rate: int = RATE) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate))).astype(np.float32)


def write_wav(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)
    return path


def write_folders(root: Path) -> Path:
    """clean/, noise/, rirs/ and noisy/, nested as in the DNS Challenge, of mixed rates and channels."""
    for index in range(4):
        write_wav(root / "clean" / "read_speech" / f"book_{index}" / "a.wav", speech_like(3, index))
        write_wav(root / "noise" / "freesound" / f"n{index}.wav", noise_like(2.5, 10 + index))
        write_wav(root / "noisy" / f"r{index}.flac", speech_like(2, index) + 0.5 * noise_like(2, index))
    write_wav(root / "clean" / "other" / "rate_44100.flac", speech_like(2, 5, 44_100), 44_100)
    write_wav(root / "clean" / "other" / "stereo.wav", np.stack([speech_like(2, 6)] * 2, axis=1))
    response = noise_like(0.3, 20) * np.exp(-np.arange(round(0.3 * RATE)) / 800)
    write_wav(root / "rirs" / "room.wav", response)
    return root


def changed(arguments: list[str], *more: str) -> list[str]:
    """`arguments` with `more`, whose flags take the place of equal ones."""
    kept, is_kept = [], True
    for argument in arguments:
        if argument.startswith("--"):
            is_kept = argument not in more
        kept += [argument] * is_kept
    return [*kept, *more]
