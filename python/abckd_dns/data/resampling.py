"""From one sample rate to another, at once or in blocks."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator

import torch
import torchaudio
from torch import Tensor

_WIDTH = 8
"""Periods of the lower rate, rounded up, that the filter of torchaudio reaches to either side: it has six zero
crossings there, a little farther apart than a period."""


def resample(waveform: Tensor, source_rate: int, target_rate: int) -> Tensor:
    """Waveform (..., N) from one rate to the other, with ceil(N * target / source) samples."""
    if source_rate == target_rate:
        return waveform
    return _resampler(_round_rate(source_rate), _round_rate(target_rate))(waveform)


def resample_blocks(blocks: Iterable[Tensor], source_rate: int, target_rate: int) -> Iterator[Tensor]:
    """As `resample` of all blocks (..., n) joined, which it never holds: some blocks of the result, of any lengths."""
    source_rate, target_rate = _round_rate(source_rate), _round_rate(target_rate)
    if source_rate == target_rate:
        yield from blocks
        return
    common = math.gcd(source_rate, target_rate)
    old, new = source_rate // common, target_rate // common
    # What the filter sees beside a sample, in whole periods of the two rates.
    beside = old * math.ceil(_WIDTH * max(1.0, old / new) / old)
    resampler = _resampler(source_rate, target_rate)
    past, waiting = 0, None  # how much of `waiting` has been resampled and is there for the filter alone
    for block in blocks:
        waiting = block if waiting is None else torch.cat((waiting, block), dim=-1)
        ready = (waiting.shape[-1] - past - beside) // old * old
        if ready <= 0:
            continue
        seen = waiting[..., : past + ready + beside]
        yield resampler(seen)[..., past // old * new : (past + ready) // old * new]
        keep = max(0, past + ready - beside)
        waiting, past = waiting[..., keep:], past + ready - keep
    if waiting is not None and waiting.shape[-1] > past:
        yield resampler(waiting)[..., past // old * new :]


def _round_rate(rate: int) -> int:
    # The filter bank grows with rate / gcd(rates): gigabytes for a rate like 44099 Hz. Every common rate is a
    # multiple of 25 Hz; another one is resampled as its neighbour, at 8 kHz at most 0.16 % off.
    return max(25, round(rate / 25) * 25)


@functools.lru_cache(maxsize=16)
def _resampler(source_rate: int, target_rate: int) -> torchaudio.transforms.Resample:
    return torchaudio.transforms.Resample(source_rate, target_rate)
