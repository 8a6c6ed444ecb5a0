"""A network of 24 thousand parameters: GTCRN, written from its paper.

Source: Rong, Sun, Zhang, Hu, Zhu and Lu, 'GTCRN: a speech enhancement model requiring ultralow computational
resources', ICASSP 2024, section 2: bands of equal ERB above 2 kHz, subband features (SFE), grouped temporal
convolutions with temporal recurrent attention (TRA), grouped dual-path recurrence (G-DPRNN), a complex ratio mask. Our
reading where the paper leaves it open: the input is the compressed spectrum that all networks of this package see, the
bands are triangles that add up to 1, and a transposed convolution of stride 1 is a convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..constants import SAMPLE_RATE
from .config import GtcrnConfig
from .dual_path import AcrossBands, AlongTime, GroupedGru
from .masking import MaskNetwork, Run, call
from .stft import BINS, N_FFT

_KEPT = 65  # bins, up to 2 kHz, that are bands of their own
_BANDS = 64  # above them
_KERNEL = 3  # frames of a temporal convolution, and bands


class Bands(nn.Module):
    """Bins (..., BINS) to bands (..., 129) and back: the lower 65 bins, and 64 bands of equal width in ERB."""

    def __init__(self) -> None:
        super().__init__()
        frequencies = torch.arange(_KEPT, BINS, dtype=torch.float64) * SAMPLE_RATE / N_FFT
        erb = 21.4 * torch.log10(1 + 0.00437 * frequencies)
        places = (erb - erb[0]) / (erb[-1] - erb[0]) * (_BANDS - 1)
        # A bin lies between two bands and belongs to each by its distance to the other: (bins, bands), rows sum to 1.
        spread = (1 - (places[:, None] - torch.arange(_BANDS)).abs()).clamp(min=0)
        self.register_buffer("_gather", (spread / spread.sum(0)).float(), persistent=False)
        self.register_buffer("_spread", spread.T.float().contiguous(), persistent=False)

    def forward(self, bins: Tensor) -> Tensor:
        return torch.cat((bins[..., :_KEPT], bins[..., _KEPT:] @ self._gather), dim=-1)

    def inverse(self, bands: Tensor) -> Tensor:
        return torch.cat((bands[..., :_KEPT], bands[..., _KEPT:] @ self._spread), dim=-1)


def _with_neighbours(x: Tensor) -> Tensor:
    """SFE: each band beside the one below and above it, (B, C, T, F) to (B, 3 C, T, F)."""
    padded = functional.pad(x, (1, 1))
    count = x.shape[-1]
    return torch.cat([padded[..., i : i + count] for i in range(3)], dim=1)


class TemporalConv(nn.Conv2d):
    """A convolution of each channel over bands and frames, `dilation` apart; before the first frame are zeros."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__(channels, channels, _KERNEL, dilation=(dilation, 1), groups=channels)
        self.memory = (_KERNEL - 1) * dilation  # frames

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x)[0]

    def step(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As forward, for frames that follow `past` (B, C, memory, F): the last ones before them."""
        if past is None:
            past = x.new_zeros(*x.shape[:2], self.memory, x.shape[3])
        frames = torch.cat((past, x), dim=2)
        return super().forward(functional.pad(frames, (1, 1))), frames[:, :, -self.memory :]


class TemporalAttention(nn.Module):
    """TRA: a gain per channel and frame, by a GRU over the energies of the frames so far. (B, C, T, F) is kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gru = GroupedGru(channels, 2 * channels)
        self.gain = nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x)[0]

    def step(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As forward, for frames that follow those of which `past` (B, 2 C) is remembered."""
        hidden, last = self.gru.step(x.square().mean(-1).transpose(1, 2), past)
        return x * self.gain(hidden).sigmoid().transpose(1, 2)[..., None], last


class GroupedTemporalBlock(nn.Module):
    """Half of the channels through a separable temporal convolution and TRA, the others as they are, shuffled."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        half = channels // 2
        self.widen = nn.Sequential(nn.Conv2d(3 * half, channels, 1), nn.BatchNorm2d(channels), nn.PReLU())
        self.temporal = TemporalConv(channels, dilation)
        self.narrow = nn.Sequential(
            nn.BatchNorm2d(channels), nn.PReLU(), nn.Conv2d(channels, half, 1), nn.BatchNorm2d(half)
        )
        self.attention = TemporalAttention(half)

    def forward(self, x: Tensor, run: Run = call) -> Tensor:
        changed, kept = x.chunk(2, dim=1)
        changed = self.narrow(run(self.temporal, self.widen(_with_neighbours(changed))))
        changed = run(self.attention, changed)
        return torch.stack((changed, kept), dim=2).flatten(1, 2)


class DualPathBlock(nn.Module):
    """G-DPRNN; keeps (B, C, T, F)."""

    def __init__(self, channels: int, bands: int) -> None:
        super().__init__()
        self.across = AcrossBands(channels, bands, channels, groups=2)
        self.along = AlongTime(channels, bands, channels, groups=2)

    def forward(self, x: Tensor, run: Run = call) -> Tensor:
        return run(self.along, self.across(x))


def _narrower(source: int, target: int, groups: int = 1) -> nn.Sequential:
    """F becomes (F + 1) / 2, frame by frame."""
    convolution = nn.Conv2d(source, target, (1, 5), stride=(1, 2), padding=(0, 2), groups=groups)
    return nn.Sequential(convolution, nn.BatchNorm2d(target), nn.PReLU())


def _wider(source: int, target: int, last: nn.Module, groups: int = 1) -> nn.Sequential:
    """F becomes 2 F - 1, frame by frame."""
    convolution = nn.ConvTranspose2d(source, target, (1, 5), stride=(1, 2), padding=(0, 2), groups=groups)
    return nn.Sequential(convolution, nn.BatchNorm2d(target), last)


class Gtcrn(MaskNetwork):
    """Its layers are `encoder.0`, ..., `bottleneck.0`, ..., `decoder.0`, ...; the last of the decoder is the mask."""

    def __init__(self, config: GtcrnConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        self.bands = Bands()
        bands = ((_KEPT + _BANDS + 1) // 2 + 1) // 2
        self.encoder = nn.ModuleList(
            [
                _narrower(9, channels),
                _narrower(channels, channels, groups=2),
                *(GroupedTemporalBlock(channels, dilation) for dilation in config.dilations),
            ]
        )
        self.bottleneck = nn.ModuleList(DualPathBlock(channels, bands) for _ in range(config.blocks))
        self.decoder = nn.ModuleList(
            [
                *(GroupedTemporalBlock(channels, dilation) for dilation in config.dilations[::-1]),
                _wider(channels, channels, nn.PReLU(), groups=2),
                _wider(channels, 2, nn.Identity()),
            ]
        )
        with torch.no_grad():  # start close to the identity: a mask of tanh(1) + 0i
            normalisation = self.decoder[-1][1]
            normalisation.weight.mul_(0.1)
            normalisation.bias.copy_(torch.tensor([1.0, 0.0]))

    @property
    def distillation_layers(self) -> tuple[str, ...]:
        return (
            *(f"encoder.{i}" for i in range(len(self.encoder))),
            *(f"bottleneck.{i}" for i in range(len(self.bottleneck))),
            *(f"decoder.{i}" for i in range(len(self.decoder) - 1)),
        )

    @property
    def stages(self) -> dict[str, nn.Module]:
        return {
            name: module
            for name, module in self.named_modules()
            if isinstance(module, TemporalConv | TemporalAttention | AlongTime)
        }

    def estimate_mask(self, x: Tensor, run: Run = call) -> Tensor:
        def through(layer: nn.Module, x: Tensor) -> Tensor:
            return layer(x, run) if isinstance(layer, GroupedTemporalBlock | DualPathBlock) else layer(x)

        x = _with_neighbours(self.bands(x))
        encoded = []
        for layer in self.encoder:
            x = through(layer, x)
            encoded.append(x)
        for layer in self.bottleneck:
            x = through(layer, x)
        for layer in self.decoder:
            x = through(layer, x + encoded.pop())
        return self.bands.inverse(x.float().tanh())
