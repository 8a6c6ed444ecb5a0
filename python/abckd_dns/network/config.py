"""Sizes of a `Denoiser`, and those that have names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DenoiserConfig:
    """Size of a `Denoiser`. Every stage halves the number of frequency bins (257, 129, 65, ...)."""

    channels: tuple[int, ...]
    """Channels of the encoder's stages; the decoder mirrors them."""
    recurrent_size: int
    """Width of the GRU between encoder and decoder."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.channels) <= 7 or min(self.channels) < 1:
            raise ValueError(f"channels must be 1 to 7 positive numbers, got {self.channels}")
        if self.recurrent_size < 1:
            raise ValueError(f"recurrent_size must be positive, got {self.recurrent_size}")


PRESETS = {
    "teacher": DenoiserConfig(channels=(16, 32, 48, 64, 64), recurrent_size=192),
    "student": DenoiserConfig(channels=(8, 16, 16, 16, 16), recurrent_size=40),
}
