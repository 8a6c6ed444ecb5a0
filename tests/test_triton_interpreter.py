"""The numerics tests once more, with Triton's kernels in Triton's interpreter: that takes a process of its own.

The interpreter is slow, so a part of the cases has to do. All of them:
    TRITON_INTERPRET=1 pytest -m "not big" -k triton tests/test_tap.py tests/test_compress.py tests/test_abc_loss.py
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from abckd_kernels import backends

TESTS = Path(__file__).parent
SELECTED = {
    "test_tap.py": "test_",
    "test_compress.py": "oracle and similarity and float32 or padded-scores or test_mask or empty or strided or choice",
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
