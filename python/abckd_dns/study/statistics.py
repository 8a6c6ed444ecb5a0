"""How certain a mean over seeds and utterances is.

Every seed is tested on the same utterances, so values form a table (seeds, utterances), and both are a sample: other
seeds and other utterances would have given another mean. Two systems are compared within seed and utterance.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from scipy import stats

_REPLICATES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean, its 95 % interval, and the standard deviation between the means of seeds (NaN for one seed)."""

    mean: float
    low: float
    high: float
    seed_spread: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


def estimate(values: np.ndarray, seed: int = 0) -> Estimate:
    """Mean of values (seeds, utterances) with the interval of a bootstrap over both.

    Utterances that have a value that is not finite are left out. An utterance is drawn for all seeds at once: it is the
    same recording. A bootstrap of n seeds is too narrow by sqrt((n - 1) / n), and by the normal in place of Student's
    distribution; five seeds make that a third, so that the part of the seeds is widened by both. One seed says nothing
    of other seeds: the interval is then over utterances alone.
    """
    values = values[:, np.isfinite(values).all(axis=0)]
    seeds, utterances = values.shape
    if not utterances:
        return Estimate(*[float("nan")] * 4)
    mean = values.mean()
    of_seeds = values.mean(axis=1) - mean
    within = values - of_seeds[:, None]
    drawn_seeds, counts = _draws(seeds, utterances, seed)
    over_utterances = np.take_along_axis(counts @ within.T, drawn_seeds, axis=1).mean(axis=1)
    over_seeds = of_seeds[drawn_seeds].mean(axis=1) * _widening(seeds)
    low, high = np.percentile(over_utterances + over_seeds, (2.5, 97.5))
    spread = of_seeds.std(ddof=1) if seeds > 1 else float("nan")
    return Estimate(float(mean), float(low), float(high), float(spread))


@functools.lru_cache(maxsize=4)  # a report has hundreds of tables of one shape
def _draws(seeds: int, utterances: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which seeds each replicate draws, and which share of its utterances each is: a mean is a matrix product."""
    rng = np.random.default_rng(seed)
    drawn_seeds = rng.integers(seeds, size=(_REPLICATES, seeds))
    counts = rng.multinomial(utterances, np.full(utterances, 1 / utterances), size=_REPLICATES) / utterances
    return drawn_seeds, counts


def difference(values: np.ndarray, others: np.ndarray) -> Estimate:
    """Of two systems, (seeds, utterances) each, row for row the same seed, column for column the same utterance."""
    return estimate(values - others)


def margin_of_seeds(seed_spread: float, count: int) -> float:
    """Half of the 95 % interval of a mean over `count` seeds (2 or more) that spread so much."""
    return float(stats.t.ppf(0.975, count - 1) * seed_spread / count**0.5)


def _widening(seeds: int) -> float:
    if seeds == 1:
        return 1.0
    return float((seeds / (seeds - 1)) ** 0.5 * stats.t.ppf(0.975, seeds - 1) / stats.norm.ppf(0.975))
