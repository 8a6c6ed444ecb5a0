"""What only a GPU can tell: numerics of each backend on it, equal bits of repeated launches, graphs, other GPUs.

`make gpu-check` runs the same functions and adds compute-sanitizer and timings.
"""

import pytest
import torch

from abckd_kernels import backends, use_backend
from benchmarks import gpu_numerics, gpu_parts

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("there is no GPU that PyTorch can use", allow_module_level=True)


@pytest.fixture(params=["cuda", "triton"])
def gpu_backend(request):
    """Each backend that may serve a GPU, forced for the test."""
    for op in backends.ops():
        reason = backends.why_not(op, request.param, "cuda")
        if reason is not None:
            pytest.skip(reason)
    with use_backend(request.param):
        yield request.param


@pytest.fixture
def setting(gpu_backend):
    return gpu_parts.Setting("cuda", [gpu_backend], quick=True)


@pytest.mark.parametrize("check", gpu_numerics.CHECKS.values(), ids=gpu_numerics.CHECKS)
def test_numerics(gpu_backend, check):
    check(torch.device("cuda"))


@pytest.mark.parametrize("part", [gpu_parts.repeats, gpu_parts.graph, gpu_parts.small, gpu_parts.second_gpu],
                         ids=lambda part: part.__name__)  # fmt: skip
def test_part(setting, gpu_backend, part):
    try:
        part(setting, gpu_backend)
    except gpu_parts.Skipped as reason:
        pytest.skip(str(reason))


def test_auto_serves_a_gpu_with_the_first_backend_that_can():
    for op in backends.ops():
        expected = "cuda" if backends.why_not(op, "cuda", "cuda") is None else "triton"
        assert backends.choose(op, "cuda") == expected
