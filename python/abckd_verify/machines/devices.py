"""How a device is timed: marks in time, memory, bandwidth, and on a GPU the replay of a captured step.

Both classes have the same methods, so that what is measured does not ask where it runs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

TIMES_L2 = 4


class Stream(NamedTuple):
    """Work that does nothing but move so many bytes, from memory and to it."""

    work: Callable[[], object]
    bytes: int


class Cpu:
    """The CPU. A mark is a number of seconds."""

    name = "cpu"
    is_gpu = False
    copied = 2**28

    @staticmethod
    def mark() -> float:
        return time.perf_counter()

    @staticmethod
    def milliseconds(start: float, end: float) -> float:
        return (end - start) * 1e3

    @staticmethod
    def wait() -> None:
        """Marks are in time already."""

    @staticmethod
    def peak(work: Callable[[], object]) -> int:
        """Bytes that torch holds at most during work(), beyond what was there before."""
        return _held_and_highest(work)[1]

    @staticmethod
    def held(work: Callable[[], object]) -> int:
        """Bytes that torch holds as long as the result of work() lives, beyond what was there before."""
        return _held_and_highest(work)[0]

    @classmethod
    def streams(cls) -> dict[str, Stream]:
        """A read, and a copy."""
        source = torch.ones(cls.copied // 4)
        target = torch.empty_like(source)
        return {
            "read": Stream(source.sum, source.nbytes),
            "copy": Stream(lambda: target.copy_(source), 2 * source.nbytes),
        }

    @staticmethod
    def copies(size: int) -> int:
        """Caches stay as a training step leaves them: one set of inputs."""
        return 1


class Gpu:
    """The current CUDA or ROCm device. A mark is an event, in time after `wait`."""

    name = "cuda"
    is_gpu = True
    copied = 2**30

    @staticmethod
    def mark() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @staticmethod
    def milliseconds(start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return start.elapsed_time(end)

    @staticmethod
    def wait() -> None:
        torch.cuda.synchronize()

    @staticmethod
    def peak(work: Callable[[], object]) -> int:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before

    @staticmethod
    def held(work: Callable[[], object]) -> int:
        before = torch.cuda.memory_allocated()
        result = work()
        after = torch.cuda.memory_allocated()
        del result
        return after - before

    @classmethod
    def streams(cls) -> dict[str, Stream]:
        """A copy as both: a reduction is no measure of what a GPU can read."""
        source = torch.ones(cls.copied // 4, device=cls.name)
        target = torch.empty_like(source)
        return dict.fromkeys(("read", "copy"), Stream(lambda: target.copy_(source), 2 * source.nbytes))

    @staticmethod
    def copies(size: int) -> int:
        """Sets of inputs of `size` bytes that, taken in turn, are out of the L2 cache whenever they are read again."""
        wanted = -(-TIMES_L2 * torch.cuda.get_device_properties(0).L2_cache_size // size)
        free, _ = torch.cuda.mem_get_info()
        return max(1, min(wanted, free // 8 // size))

    @staticmethod
    def captured(step: Callable[[], object]) -> Callable[[], None]:
        """The replay of a captured step(). Raises RuntimeError where it can't be captured."""
        graph, results = capture(step)

        def replay(results=results) -> None:  # that own the memory the graph writes to
            graph.replay()

        return replay


def capture(step: Callable[[], object]) -> tuple[torch.cuda.CUDAGraph, object]:
    """A graph of step() and what it returned, which a replay writes again. Raises RuntimeError."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # compile and allocate before the capture
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph, results


DEVICES = {"cpu": Cpu, "cuda": Gpu}


def median_milliseconds(device: type[Cpu] | type[Gpu], work: Callable[[], object], turns: int, warm_up: int) -> float:
    """Of work(), after so many that don't count."""
    marks = []
    for _ in range(warm_up + turns):
        start = device.mark()
        work()
        marks.append((start, device.mark()))
    device.wait()
    return statistics.median(device.milliseconds(*pair) for pair in marks[warm_up:])


def _held_and_highest(work: Callable[[], object]) -> tuple[int, int]:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        result = work()
    held = highest = 0
    events = (event for event in record.profiler.kineto_results.events() if event.name() == "[memory]")
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    del result
    return held, highest
