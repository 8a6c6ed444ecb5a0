"""Cached teachers: what losses need of a teacher is computed once per example; students then train without it.

A cache is a folder:

    manifest.json               who wrote what: the teacher's hash, layers, tap options, dtypes, shapes, examples
    shard-00000.safetensors     so many examples each, one row per example in every tensor; read as memory maps

    maps.0, means.0, ...        of layers with tap options: attention maps (*spatial) and channel means (C,), 1/C of a
                                feature
    features.0, ...             of layers without: whole features
    output, output.values, ...  what is kept of the teacher's output
    inputs                      a fingerprint of the example, by which another one is noticed

`cache_teacher` writes one, `TeacherCache` reads it. safetensors is needed: pip install 'abckd-kernels[cache]'.
"""

from .reading import TeacherCache
from .writing import cache_teacher

__all__ = ["TeacherCache", "cache_teacher"]
