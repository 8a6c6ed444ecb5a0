"""Speech through lossy codecs, in memory, by FFmpeg."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..constants import SAMPLE_RATE
from ..errors import InputError
from .resampling import resample


class Codec(NamedTuple):
    """An encoder of FFmpeg, the container that its packets go into, the rate of its input, and bits per second."""

    encoder: str
    container: str
    rate: int
    bit_rates: tuple[int, ...]


CODECS = (
    Codec("libopus", "ogg", 16_000, (6_000, 9_000, 12_000, 16_000, 24_000)),
    Codec("libmp3lame", "mp3", 16_000, (16_000, 24_000, 32_000, 48_000)),
    Codec("aac", "adts", 16_000, (16_000, 24_000, 32_000)),
    Codec("g722", "wav", 16_000, (64_000,)),
    Codec("pcm_mulaw", "wav", 8_000, (64_000,)),
    Codec("pcm_alaw", "wav", 8_000, (64_000,)),
)


def through_codec(waveform: Tensor, codec: Codec, bit_rate: int) -> Tensor:
    """Waveform (N,) at 16 kHz, encoded and decoded, without the codec's delay. The same input gives the same output
    with the same FFmpeg."""
    narrow = resample(waveform, SAMPLE_RATE, codec.rate).clamp(-1, 1)
    try:
        decoded, rate = _decode(_encode(narrow.numpy(), codec, bit_rate))
    except Exception as error:  # whatever FFmpeg raises
        raise InputError(f"--augment codec: FFmpeg cannot encode with {codec.encoder}: {error}") from error
    return _aligned(resample(torch.from_numpy(decoded), rate, SAMPLE_RATE), waveform)


def _encode(waveform: np.ndarray, codec: Codec, bit_rate: int) -> io.BytesIO:
    import av

    content = io.BytesIO()
    with av.open(content, "w", format=codec.container) as container:
        stream = container.add_stream(codec.encoder, rate=codec.rate)
        stream.layout = "mono"
        stream.bit_rate = bit_rate
        stream.codec_context.thread_count = 1
        samples = np.round(waveform * (2**15 - 1)).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.rate = codec.rate
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=codec.rate, frame_size=0)
        fifo = av.AudioFifo()
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            part.pts = None
            fifo.write(part)
        size = stream.codec_context.frame_size or 1024
        while (part := fifo.read(size, partial=True)) is not None:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    content.seek(0)
    return content


def _decode(content: io.BytesIO) -> tuple[np.ndarray, int]:
    import av

    parts = []
    with av.open(content) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="fltp", layout="mono")
        for frame in container.decode(stream):
            frame.pts = None
            parts += [part.to_ndarray()[0] for part in resampler.resample(frame)]
        rate = stream.codec_context.sample_rate
    return np.concatenate(parts), rate


def _aligned(decoded: Tensor, original: Tensor) -> Tensor:
    """`decoded` moved so that it fits `original` best, and of its length."""
    count = len(original)
    size = 1 << (len(decoded) + count).bit_length()
    spectra = [torch.fft.rfft(x.double(), size) for x in (decoded, original)]
    correlation = torch.fft.irfft(spectra[0] * spectra[1].conj(), size)
    delay = int(correlation.argmax())
    if delay > size // 2:
        delay -= size
    padded = torch.nn.functional.pad(decoded, (max(0, -delay), count))
    return padded[max(0, delay) :][:count].float()
