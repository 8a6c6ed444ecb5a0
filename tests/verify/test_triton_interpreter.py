"""The numerics tests once more, with Triton's kernels in Triton's interpreter: that takes a process of its own.

All cases of the ops run here, most of spectral's. The interpreter is slow, so of the loss made of them a part has to
do. All of it:
    TRITON_INTERPRET=1 pytest -m "not big" tests/test_abc_loss.py tests/test_properties.py
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from abckd_kernels import backends

TESTS = Path(__file__).parents[1]
SELECTED = {
    "test_tap.py": "test_",
    "test_compress.py": "test_",
    "test_pointwise.py": "test_",
    "test_spectral.py": "not layouts or complex64 or float16",
    "test_project.py": "test_",
    "test_divergence.py": "test_",
    "test_gram.py": "(against_numpy or layouts) and (float32 or bfloat16-frames) or vectors or gradcheck or empty",
    "test_dots.py": "test_",
    "test_pyramid.py": "test_",
    "test_correlation.py": "float32 or float64 or ignored or nothing or constant or axis",
    "test_abc_loss.py": "-float16 and not cold and not uniform and (options and padded or student and scaled)",
}

pytestmark = [
    pytest.mark.skipif(backends.TRITON_INTERPRET, reason="this is the interpreter's process"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
]


@pytest.mark.parametrize("file", SELECTED)
def test_numerics_in_the_interpreter(file):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file, "-m", "not big"]
    result = subprocess.run(
        [*command, "-k", f"triton and ({SELECTED[file]})"],
        cwd=TESTS,
        text=True,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", result.stdout).group(1)) >= 5, result.stdout
