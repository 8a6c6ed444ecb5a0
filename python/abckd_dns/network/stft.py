"""The short-time Fourier transform, and the compressed view of it that networks and losses use."""

from __future__ import annotations

import torch
import torchaudio
from torch import Tensor, nn

N_FFT = 512
HOP = 256
BINS = N_FFT // 2 + 1

# Power below which a bin counts as silent. Speech at -25 dBFS has bins around 1; this is 60 dB below, and it
# bounds the slope of `compress`, which is infinite at 0.
POWER_FLOOR = 1e-6

EXPONENT = 0.3
"""Of the magnitude, in `compress`: loudness is roughly such a power of it."""


def _sqrt_hann(length: int, **kwargs) -> Tensor:
    return torch.hann_window(length, **kwargs).sqrt()


def envelope() -> Tensor:
    """What analysis and synthesis together do to a frame, (N_FFT,): sums to 1 over frames that are HOP apart."""
    return _sqrt_hann(N_FFT).square()


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


class FrameTransform(nn.Module):
    """The transform of `Stft` for one frame at a time, in real arithmetic, as matrix products.

    Frames (B, N_FFT) to spectra (B, 2, BINS), real part before imaginary part, and back. Both directions apply
    the window.
    """

    def __init__(self) -> None:
        super().__init__()
        window = _sqrt_hann(N_FFT).double()  # rounded as in `Stft`: near its ends that is not negligible
        # The matrices are what the fast transforms make of unit vectors.
        forward = torch.fft.rfft(torch.diag(window))
        unit = torch.eye(BINS, dtype=torch.complex128)
        inverse = torch.cat((torch.fft.irfft(unit), torch.fft.irfft(1j * unit))) * window
        forward = torch.cat((forward.real, forward.imag), dim=1)
        self.register_buffer("_forward_matrix", forward.float(), persistent=False)
        self.register_buffer("_inverse_matrix", inverse.float(), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        return (frames @ self._forward_matrix).unflatten(1, (2, BINS))

    def inverse(self, spectrum: Tensor) -> Tensor:
        return spectrum.flatten(1) @ self._inverse_matrix


def compress(spectrum: Tensor, exponent: float = EXPONENT) -> tuple[Tensor, Tensor, Tensor]:
    """Real part, imaginary part and magnitude of a complex spectrum whose magnitude is raised to `exponent`.

    Loudness is roughly a power of the magnitude, so quiet speech counts as much as loud speech. Silent bins
    give finite values and gradients.
    """
    return compress_parts(spectrum.real, spectrum.imag, exponent)


def compress_parts(real: Tensor, imaginary: Tensor, exponent: float = EXPONENT) -> tuple[Tensor, Tensor, Tensor]:
    """As `compress`, of a spectrum in two real tensors."""
    power = real.square() + imaginary.square() + POWER_FLOOR
    scale = power.pow((exponent - 1) / 2)
    return real * scale, imaginary * scale, power.pow(exponent / 2)
