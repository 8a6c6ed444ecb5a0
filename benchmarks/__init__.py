"""Benchmarks over the public API. `python -m benchmarks.run` prints them."""
