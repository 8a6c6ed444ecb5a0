"""The numerics tests once more, with the CUDA kernels in abckd_verify's emulator: that takes a process of its own.

The emulator fails a launch that touches a byte too many, races, or leaves a barrier out. Seeds change the order in
which blocks and threads run, so that results which depend on it are found too.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from abckd_kernels import backends
from abckd_verify import environment
from abckd_verify.machines import emulator as simt
from abckd_verify.ops import SPECS

TESTS = Path(__file__).parents[1]
SELECTED = {
    "test_tap.py": "test_",
    "test_compress.py": "test_",
    "test_spectral.py": "test_",
    "test_divergence.py": "test_",
    "test_abc_loss.py": "test_",
    "test_properties.py": "test_",
    "test_direct_calls.py": "test_",
    "test_autograd.py": "opcheck or both_paths",
}

pytestmark = [
    pytest.mark.skipif(backends.extension() is None, reason="the C++ extension, which declares the ops, is not built"),
    pytest.mark.skipif(simt.why_unavailable() is not None, reason=str(simt.why_unavailable())),
]


def run_emulated(seed: int, *arguments: str) -> int:
    """Run pytest with the CUDA kernels in place of the CPU's. Returns how many tests passed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    settings = environment(ABCKD_TEST_SIMT=str(seed))
    result = subprocess.run(command, cwd=TESTS, text=True, env=settings, capture_output=True)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    return int(re.search(r"(\d+) passed", result.stdout).group(1))


@pytest.mark.parametrize("file", SELECTED)
def test_numerics_in_the_emulator(file):
    assert run_emulated(1, file, "-k", SELECTED[file]) >= 9


def test_no_barrier_can_be_left_out():
    """Without any one of them, a case of the op's Spec fails: as a race or as a wrong result."""
    command = [sys.executable, str(Path(__file__).parent / "left_out_barriers.py")]
    result = subprocess.run(command, text=True, env=environment(), capture_output=True)
    assert result.returncode == 0, result.stderr[-4000:]
    found = json.loads(result.stdout)
    assert len(found) >= 4 and [place for place, how in found.items() if not how] == []


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_numerics_in_other_orders(seed):
    """Every case of every Spec that has CUDA kernels."""
    emulated = [spec for spec in SPECS.values() if "cuda" in spec.launches]
    named = " or ".join(f"numerics and {spec.name}-" for spec in emulated)
    assert run_emulated(seed, "verify/test_specs.py", "-k", named) == sum(len(spec.cases) for spec in emulated)
