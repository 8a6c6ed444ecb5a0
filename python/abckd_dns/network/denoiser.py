"""The noise suppressor: a causal convolutional-recurrent U-Net that predicts a complex mask over the STFT."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from .config import DenoiserConfig
from .dual_path import DualPath
from .masking import MaskNetwork, Run, call
from .stft import BINS

_KERNEL = (2, 3)  # frames x bins: the current frame and the one before it
_PAST = _KERNEL[0] - 1  # frames that a convolution remembers


class Denoiser(MaskNetwork):
    """Its layers are `encoder.0`, `encoder.1`, ..., `bottleneck`, `decoder.0`, ..."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        bins = [BINS]
        for _ in channels:
            bins.append((bins[-1] + 1) // 2)
        self.encoder = nn.ModuleList(EncoderStage(source, target) for source, target in pairwise((3, *channels)))
        if config.dual_path:
            self.bottleneck = DualPath(channels[-1], bins[-1], config.recurrent_size, config.dual_path)
        else:
            self.bottleneck = Recurrence(channels[-1], bins[-1], config.recurrent_size)
        # Skip connections are added, not concatenated: half the work for the decoder.
        self.skips = nn.ModuleList(nn.Conv2d(count, count, 1) for count in channels[::-1])
        self.decoder = nn.ModuleList(DecoderStage(source, target) for source, target in pairwise(channels[::-1]))
        self.mask = CausalTransposedConv(channels[0], 2)
        with torch.no_grad():  # start close to the identity: a mask of tanh(1) + 0i
            self.mask.weight.mul_(0.1)
            self.mask.bias.copy_(torch.tensor([1.0, 0.0]))

    @property
    def distillation_layers(self) -> tuple[str, ...]:
        last = len(self.config.channels) - 1
        return (
            *(f"encoder.{i}" for i in range(last + 1)),
            "bottleneck",
            *(f"decoder.{i}" for i in range(last)),
        )

    def estimate_mask(self, x: Tensor, run: Run = call) -> Tensor:
        encoded = []
        for stage in self.encoder:
            x = run(stage, x)
            encoded.append(x)
        x = run(self.bottleneck, x)
        for skip, stage in zip(self.skips, (*self.decoder, self.mask), strict=True):
            x = run(stage, x + skip(encoded.pop()))
        return x.float().tanh()

    @property
    def stages(self) -> dict[str, nn.Module]:
        return {name: self.get_submodule(name) for name in (*self.distillation_layers, "mask")}


class _Causal(nn.Module):
    """A convolution over (T, F) that sees only present and past frames; before the first there are zeros."""

    def forward(self, x: Tensor) -> Tensor:
        # The padding lies on both sides of T; the frames computed from the later side are dropped.
        return super().forward(x)[:, :, : x.shape[2]]

    def step(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As forward, for frames that follow `past` (B, C, _PAST, F): the last ones of the previous step."""
        if past is None:
            past = torch.zeros_like(x[:, :, :_PAST])
        frames = torch.cat((past, x), dim=2)
        return self._without_padding(frames), frames[:, :, -_PAST:]


class CausalConv(_Causal, nn.Conv2d):
    """Halves F."""

    def __init__(self, source: int, target: int) -> None:
        super().__init__(source, target, _KERNEL, stride=(1, 2), padding=(_PAST, 1))

    def _without_padding(self, frames: Tensor) -> Tensor:
        return functional.conv2d(frames, self.weight, self.bias, self.stride, padding=(0, 1))


class CausalTransposedConv(_Causal, nn.ConvTranspose2d):
    """F becomes 2 F - 1."""

    def __init__(self, source: int, target: int) -> None:
        super().__init__(source, target, _KERNEL, stride=(1, 2), padding=(0, 1))

    def _without_padding(self, frames: Tensor) -> Tensor:
        return functional.conv_transpose2d(frames, self.weight, self.bias, self.stride, padding=(_PAST, 1))


class _Stage(nn.Sequential):
    """A causal convolution and layers that treat every frame alone."""

    def step(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        convolution, *others = self
        x, past = convolution.step(x, past)
        for layer in others:
            x = layer(x)
        return x, past


class EncoderStage(_Stage):
    """(B, C, T, F) to (B, C', T, (F + 1) // 2)."""

    def __init__(self, source: int, target: int) -> None:
        super().__init__(CausalConv(source, target), nn.BatchNorm2d(target), nn.LeakyReLU(0.1))


class DecoderStage(_Stage):
    """(B, C, T, F) to (B, C', T, 2 F - 1)."""

    def __init__(self, source: int, target: int) -> None:
        super().__init__(CausalTransposedConv(source, target), nn.BatchNorm2d(target), nn.LeakyReLU(0.1))


class Recurrence(nn.Module):
    """GRU over time on all channels and bins of a frame, with a residual connection; keeps (B, C, T, F)."""

    def __init__(self, channels: int, bins: int, size: int) -> None:
        super().__init__()
        self.gru = nn.GRU(channels * bins, size, batch_first=True)
        self.expand = nn.Linear(size, channels * bins)

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x)[0]

    def step(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As forward, for frames that follow those of which the GRU remembers `past` (B, size)."""
        batch, channels, frames, bins = x.shape
        hidden, last = self.gru(x.transpose(1, 2).flatten(2), None if past is None else past[None])
        return x + self.expand(hidden).view(batch, frames, channels, bins).transpose(1, 2), last[0]
