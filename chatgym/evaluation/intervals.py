"""95 % intervals: Wilson's for shares, the bootstrap for means and other statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Z = 1.959963984540054
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float

    def scaled(self, zero: float, unit: float) -> Interval:
        """Return the interval on the scale where `zero` is 0 and ``zero + unit`` is 1; `unit` is positive."""
        return Interval((self.value - zero) / unit, (self.low - zero) / unit, (self.high - zero) / unit)


def wilson(successes: float, n: int) -> Interval:
    """Return the share of successes among `n` with Wilson's score interval (Wilson 1927), within 0 and 1.

    None of `n` has the low end 0, all of `n` the high end 1, exactly; a half counts for a tie.
    """
    share, zz = successes / n, Z * Z / n
    middle = (share + zz / 2) / (1 + zz)
    half = Z * math.sqrt(share * (1 - share) / n + zz / (4 * n)) / (1 + zz)
    low = 0.0 if successes <= 0 else max(middle - half, 0.0)  # by the formula too, but for rounding
    high = 1.0 if successes >= n else min(middle + half, 1.0)
    return Interval(share, low, high)


def bootstrap_mean(values: npt.NDArray[np.float64], seed: int = 0) -> Interval:
    """Return the mean of `values`, float64[N], with its percentile bootstrap interval (Efron 1979)."""
    generator, n = np.random.default_rng(seed), len(values)
    rows = max(min(1_000_000 // n, RESAMPLES), 1)  # resamples at once: bounds the memory
    parts = [min(rows, RESAMPLES - first) for first in range(0, RESAMPLES, rows)]
    means = np.concatenate([values[generator.integers(0, n, (part, n))].mean(1) for part in parts])
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def iqm(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the interquartile mean over the last axis, float64[..., N] to float64[...] (Agarwal et al. 2021).

    A quarter of the values, rounded down, is left out at each end; so it is the mean of fewer than four values.
    """
    cut = values.shape[-1] // 4
    middle: npt.NDArray[np.float64] = np.sort(values, -1)[..., cut : values.shape[-1] - cut].mean(-1)
    return middle


def resampled_means(columns: npt.NDArray[np.float64], seed: int = 0) -> npt.NDArray[np.float64]:
    """Return the column means of float64[N, C] and of its resamples, float64[1 + RESAMPLES, C].

    Row 0 has the means of `columns` itself. A resample draws the same rows for all columns, so they stay paired.
    """
    generator, n = np.random.default_rng(seed), len(columns)
    rows = max(min(4_000_000 // n, RESAMPLES), 1)  # draws at once: bounds the memory
    parts = [min(rows, RESAMPLES - first) for first in range(0, RESAMPLES, rows)]
    drawn = [generator.multinomial(n, np.full(n, 1 / n), part) @ columns / n for part in parts]
    return np.concatenate([columns.mean(0)[None], *drawn])


def percentiles(values: npt.NDArray[np.float64]) -> Interval:
    """Return the interval of a statistic, float64[1 + RESAMPLES]: value 0 is of the sample, the rest of resamples."""
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return Interval(float(values[0]), float(low), float(high))
