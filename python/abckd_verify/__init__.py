"""What must hold of every op, and the machines that look whether it does; not installed with the library.

    ops/<op>.py     one Spec per op (spec.py): all other modules are loops over SPECS
    inputs, exact/  features and layouts; definitions in NumPy float64 and in plain PyTorch; tolerances
    machines/       emulator, interpreter, compilers and their machine code, clocks
    traffic, resources, predict, gpu_check      commands: python -m abckd_verify.traffic and so on

It is found where the folder python/ is on PYTHONPATH, as `make` sets it.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(**changes: str) -> dict[str, str]:
    """Of a process that shall find what this one finds, with changes."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(str(Path(path).resolve()) for path in sys.path)} | changes
