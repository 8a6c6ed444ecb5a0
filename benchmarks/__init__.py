"""Benchmarks over the public API. `python -m benchmarks.run` prints them."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch.profiler, which measures memory, says a line per use
