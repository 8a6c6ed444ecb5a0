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


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(1234)
