"""Fixtures of the library's tests: the backend under test, and uninitialised memory that is NaN."""

import os
from pathlib import Path

import cases
import pytest
import torch

from abckd_kernels import use_backend

TESTS = Path(__file__).parent

if "ABCKD_TEST_SIMT" in os.environ:  # a seed: the backend "cpu" is then the CUDA kernels in the emulator
    from simt import emulated

    emulated.load().set_seed(int(os.environ["ABCKD_TEST_SIMT"]))


# Each test of these is long and needs no other: it goes to whichever worker of pytest-xdist is free. The tests of every
# other file stay together, for the sake of their fixtures.
SPREAD = ("test_compile_ahead.py", "test_cuda_emulator.py", "test_triton_interpreter.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return nodeid if file.endswith(SPREAD) else file

    return Scheduling(config, log)


@pytest.fixture(params=cases.BACKENDS)
def backend(request):
    """Each backend that serves CPU tensors here, forced for the test."""
    with use_backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def poisoned_memory(request):
    """Fresh memory is NaN, in Python and in C++, so that a kernel which leaves a value out is found."""
    if request.path.parent not in (TESTS, TESTS / "losses"):
        yield
        return
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Whatever tests ran before."""
    torch.manual_seed(0)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(1234)
