"""The command `describe`: what a network costs, and which of its layers can be distilled."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..constants import SAMPLE_RATE
from ..options import DescribeOptions
from .device import one_thread, processor_name
from .load import load_network
from .masking import MaskNetwork
from .stft import HOP
from .streaming import LATENCY, StreamingDenoiser

_SECONDS = 10  # of sound, for counting and measuring
_RUNS = 5


def describe(options: DescribeOptions) -> None:
    network = load_network(options.network, "network", new=True).eval()
    noisy = 0.1 * torch.randn(1, _SECONDS * SAMPLE_RATE, generator=torch.Generator().manual_seed(0))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f"parameters        {parameters:,}")
    print(f"MACs              {macs_per_second(network) / 1e6:,.1f} M per second of sound")
    print("                  (of convolutions, linear and recurrent layers; not of STFT, normalisation, activations)")
    if isinstance(network, MaskNetwork):
        print(f"latency           {1000 * LATENCY / SAMPLE_RATE:g} ms ({LATENCY} samples), and the time of a step")
    else:
        print("latency           unknown, as it is no network of this package")
    print(f"real-time factor  on one thread of {processor_name()}:")
    with one_thread():
        print(f"                  {_time_at_once(network, noisy) / _SECONDS:.4f} at once")
        if isinstance(network, MaskNetwork):
            times, available = _times_of_steps(StreamingDenoiser(network), noisy), HOP / SAMPLE_RATE
            print(
                f"                  {np.median(times) / available:.4f} step by step: {1e3 * np.median(times):.2f} ms "
                f"of {1e3 * available:g} ms, 99 % of the steps below {1e3 * np.percentile(times, 99):.2f} ms"
            )
    print("layers that can be distilled, and their features for 1 s of sound:")
    for name, shape in feature_shapes(network).items():
        print(f"  {name:<15} {shape}")


@torch.inference_mode()
def macs_per_second(network: nn.Module) -> float:
    """Multiply-accumulate operations per second of sound, of convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, _SECONDS * SAMPLE_RATE))
    return counter.get_total_flops() / 2 / _SECONDS


@torch.inference_mode()
def feature_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of each layer's feature: of the default layers of a network that has such, or else of all whose output
    is one (or, as "name:index", a tuple of them): numbers with an axis for the batch, one for channels, and more."""
    shapes = {}

    def record(name: str, output: object) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and output.dim() >= 3:
            shapes[name] = tuple(output.shape)
        elif isinstance(output, tuple | list):
            for index, part in enumerate(output):
                if isinstance(part, Tensor):
                    record(f"{name}:{index}", part)

    names = getattr(network, "distillation_layers", None) or [name for name, _ in network.named_modules() if name]
    hooks = [
        network.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: record(name, output))
        for name in names
    ]
    try:
        network(torch.zeros(1, SAMPLE_RATE))
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


@torch.inference_mode()
def _time_at_once(network: nn.Module, noisy: Tensor) -> float:
    """Seconds for a whole waveform (1, N), the median of some runs after one that does not count."""
    return float(np.median([_seconds(lambda: network(noisy)) for _ in range(_RUNS + 1)][1:]))


@torch.inference_mode()
def _times_of_steps(denoiser: StreamingDenoiser, noisy: Tensor) -> list[float]:
    """Seconds of every step for a waveform (1, N), without the first ones."""
    state, times = denoiser.initial_state(), []
    for samples in noisy.split(HOP, dim=-1)[:-1]:
        start = time.perf_counter()
        _, state = denoiser.step(samples, state)
        times.append(time.perf_counter() - start)
    return times[_RUNS:]


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
