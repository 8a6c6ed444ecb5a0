"""What the numerics tests run over: the backends that serve here, and the inputs of abckd_verify."""

from __future__ import annotations

import os

from abckd_kernels import backends
from abckd_verify.inputs import *  # noqa: F403

# Triton serves CPU tensors in its interpreter only: then it is the one to test, and nothing else is. In the emulator
# CUDA's kernels stand in for the CPU's (conftest.py).
EMULATED = "ABCKD_TEST_SIMT" in os.environ
BACKENDS = tuple(
    name
    for name in (("triton",) if backends.TRITON_INTERPRET else ("cpu",) if EMULATED else ("cpu", "reference"))
    if backends.why_not("tap_forward", name, "cpu") is None
)
