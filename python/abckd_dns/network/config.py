"""Sizes of networks, and those that have names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DenoiserConfig:
    """Size of a `Denoiser`. Every stage halves the number of frequency bins (257, 129, 65, ...)."""

    channels: tuple[int, ...]
    """Channels of the encoder's stages; the decoder mirrors them."""
    recurrent_size: int
    """Width of the GRUs between encoder and decoder."""
    dual_path: int = 0
    """Blocks of GRUs over the bands of a frame and over the frames of a band; 0: one GRU over time for all bands
    together."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.channels) <= 7 or min(self.channels) < 1:
            raise ValueError(f"channels must be 1 to 7 positive numbers, got {self.channels}")
        if self.recurrent_size < 1:
            raise ValueError(f"recurrent_size must be positive, got {self.recurrent_size}")
        if self.dual_path < 0:
            raise ValueError(f"dual_path must be at least 0, got {self.dual_path}")


@dataclass(frozen=True)
class GtcrnConfig:
    """Size of a `Gtcrn`."""

    channels: int = 16
    """Of every layer; a multiple of 4."""
    dilations: tuple[int, ...] = (1, 2, 5)
    """In frames, of the encoder's temporal convolutions; the decoder mirrors them."""
    blocks: int = 2
    """Dual-path recurrent ones."""

    def __post_init__(self) -> None:
        if self.channels < 4 or self.channels % 4:
            raise ValueError(f"channels must be a multiple of 4, got {self.channels}")
        if not self.dilations or min(self.dilations) < 1 or self.blocks < 1:
            raise ValueError(f"dilations and blocks must be positive, got {self.dilations} and {self.blocks}")


PRESETS: dict[str, DenoiserConfig | GtcrnConfig] = {
    "teacher": DenoiserConfig(channels=(16, 32, 48, 64, 64), recurrent_size=192),
    "student": DenoiserConfig(channels=(8, 16, 16, 16, 16), recurrent_size=40),
    "dpcrn": DenoiserConfig(channels=(32, 64, 96, 128), recurrent_size=288, dual_path=3),
    "gtcrn": GtcrnConfig(),
}
