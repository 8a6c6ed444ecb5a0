"""DISPatch: distillation on the patches of the spectrogram where the student is worst, compared with its teacher."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from ...ops.shapes import frame_mask
from ...ops.spectral.spectra import COMPLEX_DTYPES
from ..common.checks import listed
from ..common.features import batch_mean, constant, weighted, without_autocast
from ..common.modules import module
from ..common.options import Convention, Count, Limits, check_options
from ._signals import Ends, Signals, same, signal_pairs


def dispatch_loss(
    student: Signals,
    teacher: Signals,
    clean: Signals,
    *,
    patch_bands: Count = 64,
    share: Annotated[float, Limits(most=1.0, above=True)] = 0.5,
    convention: Convention = "paper",
    n_fft: Count = 512,
    hop_length: Count = 128,
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights=None,
) -> Tensor:
    """Squared error of magnitudes in those patches of the spectrogram where the student has most to learn (DISPatch).

    A patch is `patch_bands` neighbouring bands of one frame; e(x, y) is the mean of (|X| - |Y|)^2 over its bins. Where
    e(student, clean) - e(teacher, clean) is among the largest m = max(floor(share * patches), 1) of a sample, the patch
    is selected; L is the mean of e(student, teacher) over selected patches, then over samples. Which patches are
    selected has no gradient.

    student, teacher, clean   waveforms (B, samples), of which spectrograms are taken by torch.stft with a periodic Hann
                  window, centred; or spectrograms (B, F, T), magnitudes or complex. Or lists of such.
    patch_bands   the last patch of a frame may have fewer.
    share         of a sample's (valid) patches, above 0 and at most 1.
    convention    "paper": padding bins do not count where patch_bands doesn't divide F; patches where the student is as
                  close to the clean signal as the teacher, or closer, are not selected; the mean is over what was
                  selected, nothing selected gives zero. Waveforms are padded with zeros at their ends, so that a
                  sample does not depend on how far its batch is padded.
                  "published": padding bins count as equal; selected is whatever is among the m largest; the sum over
                  selected patches is divided by share * patches instead of m, and waveforms are padded by reflection.
                  Patches as large as the m-th are selected, however many, in either.
    n_fft, hop_length   of the spectrograms of waveforms.
    lengths       (B,) valid samples of waveforms, valid frames of spectrograms, on the scale of padded_length.
    weights       of the pairs of signals, default 1/n.

    float32; float64 if a signal is. Raises TypeError or ValueError that names the argument.
    Source: DISPatch; with convention="published", its repository's dispatch_L2.
    """
    check_options(
        dispatch_loss, patch_bands=patch_bands, share=share, convention=convention, n_fft=n_fft, hop_length=hop_length
    )  # fmt: skip
    found, ends = signal_pairs(student, teacher, lengths, padded_length, _check)
    losses = []
    for (s, t), y in zip(found, _matching(clean, [s for s, _ in found]), strict=True):
        spectrograms = _Spectrograms(n_fft, hop_length, convention == "published", ends, (s, t))
        with without_autocast(s):
            own = spectrograms.of(s)
            with torch.no_grad():
                target, goal = (spectrograms.of(x).abs() for x in (t, constant(y)))
            patches = _Patches(patch_bands, convention == "published", own.shape[1])
            selected = _selected(own.detach(), target, goal, patches, share, spectrograms.frames(s))
            total = (patches.mean((own.abs() - target).square()) * selected.which).flatten(1).sum(1)
            losses.append(batch_mean(total / selected.divisor))
    return weighted(losses, weights, [[x.real for x in pair] for pair in found])


def _check(x: Tensor, name: str) -> torch.Size:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a waveform (B, samples) or a spectrogram (B, F, T), got {type(x).__name__}")
    if not (x.is_floating_point() or x.dtype in COMPLEX_DTYPES) or x.layout != torch.strided:
        raise TypeError(f"{name}: expected dense real or complex numbers, got {x.dtype} in layout {x.layout}")
    if x.dim() not in (2, 3) or (x.dim() == 2 and x.is_complex()) or 0 in x.shape[1:]:
        raise ValueError(f"{name}: expected (B, samples) or a spectrogram (B, F, T), got shape {tuple(x.shape)}")
    return x.shape


def _matching(clean: Signals, students: list[Tensor]) -> list[Tensor]:
    """The clean signals as a list, checked to be such as the students' are."""
    one, signals = isinstance(clean, Tensor), list(listed("clean", clean))
    same("number of signals", len(students), "student", len(signals), "clean")
    for index, (s, y) in enumerate(zip(students, signals, strict=True)):
        name = "clean" if one else f"clean[{index}]"
        same("shape", tuple(s.shape), "student", tuple(_check(y, name)), name)
        same("device", s.device, "student", y.device, name)
    return signals


class _Spectrograms:
    """Signals to spectrograms (B, F, T), magnitudes or complex, with zeros behind each sample's end."""

    def __init__(self, n_fft: int, hop_length: int, reflect: bool, ends: Ends, like: tuple[Tensor, Tensor]):
        self.n_fft, self.hop_length, self.ends = n_fft, hop_length, ends
        self.pad_mode = "reflect" if reflect else "constant"
        self.real = torch.float64 if any(x.real.dtype == torch.float64 for x in like) else torch.float32

    def of(self, x: Tensor) -> Tensor:
        x = self.ends.zeroed(x)
        x = x.to(self.real.to_complex() if x.is_complex() else self.real)
        if x.dim() == 3:
            return x
        if self.pad_mode == "reflect" and x.shape[1] <= self.n_fft // 2:
            raise ValueError(
                f"student: expected more than n_fft / 2 = {self.n_fft // 2} samples to reflect, got {x.shape[1]}"
            )
        if not len(x):  # torch.stft has no empty batches
            return x.new_zeros((0, self.n_fft // 2 + 1, 1 + x.shape[1] // self.hop_length)) + x.sum()
        window = torch.hann_window(self.n_fft, dtype=self.real, device=x.device)
        return torch.stft(
            x, self.n_fft, self.hop_length, window=window, pad_mode=self.pad_mode, return_complex=True
        )  # fmt: skip

    def frames(self, x: Tensor) -> Tensor | None:
        """Valid frames (B,) of the spectrogram of `x`; None: all."""
        count = self.ends.of(x)
        if count is None or x.dim() == 3:
            return count
        return torch.where(count > 0, 1 + count // self.hop_length, 0)


class _Patches(NamedTuple):
    """Means over `size` neighbouring bands of a frame."""

    size: int
    padded: bool  # the last patch counts as many bins as the others
    bands: int

    @property
    def whole(self) -> int:
        return self.bands // self.size

    @property
    def number(self) -> int:
        """Of a frame."""
        return -(-self.bands // self.size)

    def mean(self, x: Tensor) -> Tensor:
        """(B, F, T) to (B, number, T)."""
        split = self.whole * self.size
        parts = [x[:, :split].unflatten(1, (self.whole, self.size)).mean(2)] if self.whole else []
        if split < self.bands:
            parts.append(x[:, split:].sum(1, keepdim=True) / self._last)
        return torch.cat(parts, 1)

    @property
    def _last(self) -> int:
        return self.size if self.padded else self.bands - self.whole * self.size


class _Selected(NamedTuple):
    which: Tensor  # (B, patches, T) bool
    divisor: Tensor | float  # of a sample's sum


def _selected(
    own: Tensor, target: Tensor, goal: Tensor, patches: _Patches, share: float, frames: Tensor | None
) -> _Selected:
    """The patches where own is farther from goal than target is, by at least the m-th largest difference."""
    worse = patches.mean((own.abs() - goal).square_()) - patches.mean((target - goal).square_())
    valid = frame_mask(frames, worse.shape[2], worse.shape[2])
    divisor: Tensor | float  # as published
    if frames is None or valid is None:
        divisor = patches.number * worse.shape[2] * share
        least = worse.flatten(1).topk(max(int(divisor), 1)).values[:, -1]
        which = worse >= least[:, None, None]
    else:
        number = patches.number * frames * share
        worse = worse.masked_fill(~valid[:, None], -torch.inf)
        wanted = number.long().clamp_min(1)
        least = worse.flatten(1).sort(1, descending=True).values.gather(1, wanted[:, None] - 1)[:, 0]
        which = (worse >= least[:, None, None]) & valid[:, None]
        divisor = number.clamp_min(share)
    if patches.padded:  # the published convention
        return _Selected(which, divisor)
    which = which & (worse > 0)
    return _Selected(which, which.flatten(1).sum(1).clamp_min(1))


DispatchLoss = module(dispatch_loss, "DispatchLoss")
