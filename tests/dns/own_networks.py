"""Networks of a user, for --student and --teacher."""

import os

import torch
from torch import nn

from abckd_dns.network.config import DenoiserConfig
from abckd_dns.network.denoiser import Denoiser


class Gate(nn.Module):
    """Waveform in, waveform out; `features` is (B, C, T), `recurrent` returns a tuple of (B, T, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.features = nn.Conv1d(1, channels, 64, stride=32)
        self.pair = Pair()
        self.back = nn.ConvTranspose1d(channels, 1, 64, stride=32)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        x, _ = self.pair(self.features(waveform[:, None]))
        x = self.back(x)[:, 0]
        return nn.functional.pad(x, (0, waveform.shape[-1] - x.shape[-1]))


class Random(Gate):
    """Draws random numbers while it trains, and keeps statistics."""

    def __init__(self) -> None:
        super().__init__(4)
        self.features = nn.Sequential(self.features, nn.BatchNorm1d(4), nn.Dropout(0.3))


class Pair(nn.Module):
    def forward(self, x):
        return x.tanh(), x


def small() -> nn.Module:
    return Gate(4)


def random() -> nn.Module:
    return Random()


def large() -> nn.Module:
    return Gate(8)


def needs_argument(size) -> nn.Module:
    return Gate(size)


def no_module():
    return 3


class Shorter(nn.Module):
    def forward(self, waveform):
        return waveform[:, 2:]


def shorter() -> nn.Module:
    return Shorter()


def wrong_shape() -> nn.Module:
    return nn.Conv1d(1, 1, 3)


def fails() -> nn.Module:
    raise RuntimeError("out of luck")


class FailsWhenLoud(nn.Linear):
    def forward(self, waveform):
        if waveform.abs().max() > 0.9:
            raise RuntimeError("too loud")
        return waveform


def fails_when_loud() -> nn.Module:
    return FailsWhenLoud(1, 1)


def dies_in_a_worker() -> nn.Module:
    if torch.utils.data.get_worker_info() is not None:
        os._exit(1)  # as where the system kills it for want of memory
    return FailsWhenLoud(1, 1)


constant = 3


def tiny() -> nn.Module:
    return Denoiser(DenoiserConfig(channels=(4, 6), recurrent_size=8))


def tiny_teacher() -> nn.Module:
    return Denoiser(DenoiserConfig(channels=(6, 8), recurrent_size=12))


class Louder(nn.Linear):
    def forward(self, waveform):
        return 2 * waveform


def louder() -> nn.Module:
    return Louder(1, 1)
