"""The short-time Fourier transform, and the compressed view of it that networks and losses use."""

from __future__ import annotations

import torch
import torchaudio
from torch import Tensor, nn

SAMPLE_RATE = 16_000
N_FFT = 512
HOP = 256
BINS = N_FFT // 2 + 1

# Power below which a bin counts as silent. Speech at -25 dBFS has bins around 1; this is 60 dB below, and it
# bounds the slope of `compress`, which is infinite at 0.
_POWER_FLOOR = 1e-6


def _sqrt_hann(length: int, **kwargs) -> Tensor:
    return torch.hann_window(length, **kwargs).sqrt()


class Stft(nn.Module):
    """Waveforms (B, N) to complex spectra (B, T, BINS) and back; T = 1 + N // HOP.

    Time comes before frequency, as everywhere in this package. Frame t sees N_FFT samples around t * HOP;
    zeros beyond both ends make any length N >= 1 valid. Always in float32: half precision has neither the
    range nor the complex kernels.
    """

    def __init__(self) -> None:
        super().__init__()
        # One window for analysis and synthesis: their product, Hann at half overlap, sums to a constant.
        shape = dict(n_fft=N_FFT, hop_length=HOP, window_fn=_sqrt_hann, pad_mode="constant")
        self._forward_transform = torchaudio.transforms.Spectrogram(power=None, **shape)
        self._inverse_transform = torchaudio.transforms.InverseSpectrogram(**shape)

    def forward(self, waveform: Tensor) -> Tensor:
        with torch.autocast(waveform.device.type, enabled=False):
            return self._forward_transform(waveform.float()).transpose(1, 2)

    def inverse(self, spectrum: Tensor, length: int) -> Tensor:
        with torch.autocast(spectrum.device.type, enabled=False):
            return self._inverse_transform(spectrum.transpose(1, 2), length)


def compress(spectrum: Tensor, exponent: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """Real part, imaginary part and magnitude of a complex spectrum whose magnitude is raised to `exponent`.

    Loudness is roughly a power of the magnitude, so quiet speech counts as much as loud speech. Silent bins
    give finite values and gradients.
    """
    power = spectrum.real.square() + spectrum.imag.square() + _POWER_FLOOR
    scale = power.pow((exponent - 1) / 2)
    return spectrum.real * scale, spectrum.imag * scale, power.pow(exponent / 2)
