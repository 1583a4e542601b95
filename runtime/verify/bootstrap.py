"""Confidence intervals by resampling: of means, and of whatever else samples are summed up to."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from onnxfold.runtime.verify.bounds import student_quantile

Indices = npt.NDArray[np.int64]

RESAMPLES = 10_000
_SEED = 20
_GROUPS = 50
_CHUNK = 1 << 22  # indices in memory at once


def mean_interval(
    values: npt.NDArray[np.float64], confidence: float = 0.95, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """The bias-corrected and accelerated bootstrap interval (BCa) of a mean.

    Source: B. Efron, Better Bootstrap Confidence Intervals, Journal of the American Statistical
    Association 82 (1987), pp. 171-185. Paired differences of two models need no assumption about
    how losses are distributed, which are skewed and have many zeros. Seeded: the same values give
    the same interval.

    Args:
        values: At least two.
        confidence: The share of such intervals that hold the true mean.
        resamples: How many.
    """
    mean = float(values.mean())
    if not np.isfinite(values).all():
        return -math.inf, math.inf
    if np.ptp(values) == 0:
        return mean, mean
    means = _resampled_means(values, resamples)
    normal = NormalDist()
    # Ties count half: of few samples many resamples give the very mean.
    below = (np.sum(means < mean) + np.sum(means == mean) / 2) / resamples
    bias = normal.inv_cdf(min(max(float(below), 0.5 / resamples), 1 - 0.5 / resamples))
    # The mean is off its jackknife means by the centred values, scaled: the scale cancels.
    centred = values - mean
    power = float(np.sum(centred**2)) ** 1.5
    acceleration = float(np.sum(centred**3)) / (6 * power) if power else 0.0
    levels: list[float] = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        z = bias + normal.inv_cdf(tail)
        levels.append(normal.cdf(bias + z / (1 - acceleration * z)))
    low, high = np.quantile(means, levels)
    return float(low), float(high)


def statistic_interval(
    statistic: Callable[[Indices], float], samples: int, confidence: float = 0.95
) -> tuple[float, float]:
    """The interval of a statistic of all samples, by leaving out one group of them at a time.

    The grouped jackknife with Student's t. Source: B. Efron, The Jackknife, the Bootstrap and
    Other Resampling Plans (1982), chapters 2 and 3. A bootstrap would repeat samples, which a
    loss on pairs of samples takes for its own negatives.

    Args:
        statistic: Of the samples with these indices.
        samples: How many there are; at least two.
        confidence: The share of such intervals that hold the true value.
    """
    groups = min(samples, _GROUPS)
    order = np.random.default_rng(_SEED).permutation(samples)
    parts = np.array_split(order, groups)
    found: list[float] = []
    for left_out in range(groups):
        kept = np.concatenate([part for at, part in enumerate(parts) if at != left_out])
        found.append(statistic(np.sort(kept)))
    values = np.array(found)
    if not np.isfinite(values).all():
        return -math.inf, math.inf
    middle = statistic(np.arange(samples))
    deviation = math.sqrt((groups - 1) / groups * float(np.sum((values - values.mean()) ** 2)))
    reach = student_quantile((1 + confidence) / 2, groups - 1) * deviation
    return middle - reach, middle + reach


def _resampled_means(values: npt.NDArray[np.float64], resamples: int) -> npt.NDArray[np.float64]:
    rng = np.random.default_rng(_SEED)
    rows = max(1, _CHUNK // values.size)
    means = np.empty(resamples)
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        chosen = rng.integers(0, values.size, (count, values.size))
        means[start : start + count] = values[chosen].mean(axis=1)
    return means
