"""The commands in processes of their own, which import what this one imports."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent  # where own_networks is
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(str(Path(path).resolve()) for path in sys.path),
}
