"""Noise suppression step by step: what a device does with a network of this package while sound comes in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import InputError
from .masking import MaskNetwork
from .stft import HOP, N_FFT, FrameTransform, compress, compress_parts, envelope

State = dict[str, Tensor]  # by name, what one step leaves for the next
Step = Callable[[Tensor, State], tuple[Tensor, State]]

DELAY = HOP
"""Samples by which what a step returns lies behind what it was given."""

LATENCY = N_FFT
"""Samples from the arrival of a sound to its being played: DELAY, and the HOP samples that a step waits for. The
time that a step takes comes on top."""


class StreamingDenoiser(nn.Module):
    """A `MaskNetwork`, with its own layers and weights and in eval mode, that takes HOP samples at a time.

    `step` is pure: real tensors in and out; `steps` does several at once. Their output lies DELAY samples behind the
    input, so that the first step returns what comes before the beginning, and `flush` what is left at the end. As a
    module it takes whole waveforms (B, N), as the network does, and gives the same.
    """

    def __init__(self, denoiser: MaskNetwork) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.transform = FrameTransform().to(device := next(denoiser.parameters()).device)
        self.register_buffer("_window", envelope().sqrt().to(device), persistent=False)
        self._names = {stage: name for name, stage in denoiser.stages.items()}
        self.eval()

    def forward(self, waveform: Tensor) -> Tensor:
        return enhance_by_steps(self.step, self.initial_state(len(waveform)), waveform)

    def initial_state(self, batch: int = 1) -> State:
        """The state before the first of `batch` sounds: zeros, each with the batch as its first axis."""
        silence = next(self.transform.buffers()).new_zeros(batch, HOP)
        with torch.no_grad():
            _, state = self.step(silence, {"samples": silence, "overlap": silence})  # stages without a past begin
        return {name: torch.zeros_like(tensor) for name, tensor in state.items()}

    def step(self, samples: Tensor, state: State) -> tuple[Tensor, State]:
        """Noisy samples (B, HOP) and the state so far to enhanced samples (B, HOP) and the state from there on."""
        following = {"samples": samples.clone()}  # who calls may fill the same memory with the next ones

        def run(stage: nn.Module, x: Tensor) -> Tensor:
            name = self._names[stage]
            x, following[name] = stage.step(x, state.get(name))
            return x

        spectrum = self.transform(torch.cat((state["samples"], samples), dim=1))
        real, imaginary = spectrum.unbind(1)
        compressed = torch.stack(compress_parts(real, imaginary), dim=1)
        mask = self.denoiser.estimate_mask(compressed.unsqueeze(2), run).squeeze(2)
        mask_real, mask_imaginary = mask.unbind(1)
        masked = (real * mask_real - imaginary * mask_imaginary, real * mask_imaginary + imaginary * mask_real)
        frame = self.transform.inverse(torch.stack(masked, dim=1))
        following["overlap"] = frame[:, HOP:]
        return state["overlap"] + frame[:, :HOP], following

    def steps(self, samples: Tensor, state: State) -> tuple[Tensor, State]:
        """As `step`, of noisy samples (B, k HOP) to as many enhanced ones: what k steps do, at once."""
        sound = torch.cat((state["samples"], samples), dim=1)
        following = {"samples": sound[:, -HOP:].clone()}

        def run(stage: nn.Module, x: Tensor) -> Tensor:
            name = self._names[stage]
            x, following[name] = stage.step(x, state.get(name))
            return x

        spectrum = torch.fft.rfft(sound.unfold(1, N_FFT, HOP) * self._window)
        mask = self.denoiser.estimate_mask(torch.stack(compress(spectrum), dim=1), run)
        masked = spectrum * torch.complex(mask[:, 0], mask[:, 1])
        first, second = (torch.fft.irfft(masked) * self._window).split(HOP, dim=-1)
        overlaps = torch.cat((state["overlap"][:, None], second), dim=1)
        following["overlap"] = overlaps[:, -1].clone()
        return (first + overlaps[:, :-1]).flatten(1), following


def flush(step: Step, rest: Tensor, state: State) -> Tensor:
    """The end of a sound: its last samples (B, n), n < HOP, and the state before them, to what no step has
    returned yet (B, HOP + n)."""
    count = rest.shape[-1]
    enhanced, state = step(functional.pad(rest, (0, HOP - count)), state)
    # After the last frame none overlaps it: here the transform divides by the window of that frame alone.
    alone = state["overlap"] / envelope()[HOP:].to(rest.device)
    return torch.cat((enhanced, alone[:, :count]), dim=-1)


def enhance_by_steps(step: Step, state: State, noisy: Tensor) -> Tensor:
    """Noisy waveforms (B, N) to enhanced waveforms (B, N), as the network does it at once.

    `step` is that of a `StreamingDenoiser`, or what was exported from it; `state` is its initial state.
    """
    whole = noisy.shape[-1] // HOP * HOP
    enhanced = []
    for samples in noisy[:, :whole].split(HOP, dim=-1) if whole else ():
        output, state = step(samples, state)
        enhanced.append(output)
    enhanced.append(flush(step, noisy[:, whole:], state))
    return torch.cat(enhanced, dim=-1)[:, DELAY:]


def streaming(network: nn.Module, argument: str) -> StreamingDenoiser:
    """`network` step by step. Raises InputError that blames `argument` if that is not possible."""
    if not isinstance(network, MaskNetwork):
        raise InputError(f"{argument}: only networks of this package run step by step, not {type(network).__name__}")
    return StreamingDenoiser(network)
