"""As much of torch.cuda as is used here, on the CPU: events are clocks, a replay computes a step again."""

import contextlib
import time
from types import SimpleNamespace

import torch

from abckd_verify.machines import devices

PROPERTIES = SimpleNamespace(
    name="stand-in", major=0, minor=0, multi_processor_count=1, total_memory=2**34, L2_cache_size=2**21
)


class Event:
    def __init__(self, enable_timing: bool):
        assert enable_timing

    def record(self) -> None:
        self.time = time.perf_counter()

    def elapsed_time(self, end: "Event") -> float:
        return (end.time - self.time) * 1e3


class Stream:
    def wait_stream(self, other: "Stream") -> None:
        assert isinstance(other, Stream)


def _listed(results):
    return [results] if isinstance(results, torch.Tensor) else results


def install(monkeypatch) -> SimpleNamespace:
    """Put the stand-ins into torch.cuda and notice the steps that `devices.capture` captures. Gives the properties."""
    capture, capturing = devices.capture, []

    class CUDAGraph:
        captured = ()

        def replay(self) -> None:
            for step, results in self.captured:
                for result, again in zip(_listed(results), _listed(step()), strict=True):
                    result.detach().copy_(again.detach())

    @contextlib.contextmanager
    def graph(captured):
        captured.captured = []
        capturing.append(captured)
        yield
        capturing.pop()

    def noticed(step):
        def noticed_step():
            results = step()
            for captured in capturing:
                captured.captured.append((step, results))
            return results

        return capture(noticed_step)

    fakes = {
        "Event": Event,
        "Stream": Stream,
        "CUDAGraph": CUDAGraph,
        "graph": graph,
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": Stream,
        "synchronize": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 0,
        "max_memory_allocated": lambda: 0,
        "mem_get_info": lambda: (2**34, 2**34),
        "device_count": lambda: 1,
        "get_device_properties": lambda index: PROPERTIES,
    }
    for name, fake in fakes.items():
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(devices, "capture", noticed)
    return PROPERTIES
