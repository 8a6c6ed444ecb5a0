"""What gpu_check asks of every loss, on the CPU."""

import pytest
import torch

from abckd_kernels import backends
from abckd_kernels.losses import table
from abckd_verify import losses

pytestmark = pytest.mark.skipif(backends.TRITON_INTERPRET, reason="the interpreter has tests of its own")


def test_all_losses_of_the_table():
    assert list(losses.by_name()) == [entry.name for entry in table()]


@pytest.mark.parametrize("dtype", losses.DTYPES, ids=str)
@pytest.mark.parametrize("name", losses.by_name())
def test_a_loss_is_as_in_float64(name, dtype):
    losses.check(losses.by_name()[name], dtype)


@pytest.mark.parametrize("name", losses.by_name())
def test_a_wrong_gradient_is_found(monkeypatch, name):
    step = losses.Problem.step

    def wrong(self, scale=1.0):
        loss, *grads = step(self, scale)
        return [loss, *(g * 1.01 if self.student[0].dtype in (torch.float32, torch.complex64) else g for g in grads)]

    monkeypatch.setattr(losses.Problem, "step", wrong)
    with pytest.raises(AssertionError, match="gradient is off"):
        losses.check(losses.by_name()[name], torch.float32)
