"""What only a GPU can tell, as tests: every item of gpu_check's parts but times and sanitizer."""

import pytest
import torch

from abckd_kernels import backends, use_backend
from abckd_verify.gpu_check import parts, plan, setting

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("there is no GPU that PyTorch can use", allow_module_level=True)

GPU = setting.Setting("cuda")
RUN = ("ops", "other cases", "losses", "graphs", "half graphs", "repeats", "repeated losses", "second device")


@pytest.mark.parametrize(
    "task, item",
    [
        pytest.param(task, item, id=f"{task}-{item}")
        for task in plan.tasks(GPU, GPU.backends(), list(RUN))
        for item in task.items
    ],
)
def test_item(task, item):
    try:
        with use_backend(task.backend):
            task.part.run(GPU, item)
    except parts.Skipped as reason:
        pytest.skip(str(reason))


def test_auto_serves_a_gpu_with_the_first_backend_that_can():
    for op in backends.ops():
        expected = "cuda" if backends.why_not(op, "cuda", "cuda") is None else "triton"
        assert backends.choose(op, "cuda") == expected
