"""How certain a mean over examples is."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """A mean with its 95 % bootstrap interval, and how many values went into it."""

    mean: float
    low: float
    high: float
    defined: int
    undefined: int

    @property
    def margin(self) -> float:
        """Half the width."""
        return (self.high - self.low) / 2


def mean_interval(values: list[float], resamples: int = 2000, seed: int = 0) -> Interval:
    """Of the finite values, with `resamples` draws. One value has no interval, and none has no mean: NaN."""
    defined = np.array([value for value in values if math.isfinite(value)])
    count = len(defined)
    low = high = math.nan
    if count > 1:  # a hundred at a time: fast, and of a large test set all would not fit into memory
        how = dict(n_resamples=resamples, batch=100, method="percentile", rng=np.random.default_rng(seed))
        low, high = stats.bootstrap((defined,), np.mean, **how).confidence_interval
    mean = float(defined.mean()) if count else math.nan
    return Interval(mean, float(low), float(high), count, len(values) - count)


def paired_difference(values: list[float], baseline: list[float]) -> Interval:
    """Of value minus baseline, example by example: far more certain than the difference of two means."""
    return mean_interval([value - base for value, base in zip(values, baseline, strict=True)])
