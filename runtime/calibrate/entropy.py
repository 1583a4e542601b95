"""entropy: the range whose codes keep most of the distribution (Kullback-Leibler divergence).

The search of Migacz, "8-bit inference with TensorRT" (GTC 2017), slides 36 to 41: for every
threshold, the reference P is the histogram inside it, with what lies outside counted in the last
bins; the candidate Q is the histogram inside it merged to as many levels as there are codes and
spread again over the bins that are not empty; the threshold with the least

    KL(P || Q) = sum of p log(p / q)

wins. Both sides of zero are one histogram here, cut at the same magnitude, as codes are asymmetric.
Where Q is empty and P is not, because outliers were counted in an empty bin, Q counts as ``EMPTY``
values, as MXNet's ``_smooth_distribution`` has it. As in NVIDIA's later implementation
(pytorch-quantization, ``calib/histogram.py``), the bins at zero are given the counts of their
neighbours: zero has a code of its own, so the many zeros of a Relu say nothing about the range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxfold.passes.constants import Array
from onnxfold.runtime.calibrate.histogram import BINS_PER_SIDE, Histogram, HistogramMethod
from onnxfold.runtime.calibrate.method import Range

LEVELS = 256
"""8-bit codes."""

STRIDE = 4
"""Bins between candidates: of 2,048 to 4,096 bins on the larger side, up to 1,008 are tried."""


EMPTY = 1e-4
"""How many values a level without any counts for, where P is not 0."""


@dataclass(frozen=True)
class Entropy(HistogramMethod):
    """Minimizes the divergence of quantized from real values over at least 2,048 bins."""

    name: ClassVar[str] = "entropy"

    def search(self, seen: Histogram) -> Range:
        """See ``HistogramMethod``."""
        counts = even_counts(seen)
        used = np.flatnonzero(counts)
        if used.size == 0:
            return seen.extremes.low, seen.extremes.high
        first, end = int(used[0]), int(used[-1]) + 1
        farthest = max(BINS_PER_SIDE - first, end - BINS_PER_SIDE)
        reach = np.arange(farthest, 0, -STRIDE)
        starts = np.maximum(BINS_PER_SIDE - reach, first)
        ends = np.minimum(BINS_PER_SIDE + reach, end)
        # All values may lie on one side of zero, and away from it.
        wide = ends - np.minimum(starts, end) >= LEVELS
        if not wide.any():
            return seen.extremes.low, seen.extremes.high
        divergence = divergences(counts, starts[wide], ends[wide])
        magnitude = float(reach[wide][int(np.argmin(divergence))]) * seen.width
        return -magnitude, magnitude


def even_counts(seen: Histogram) -> Array:
    """int64 [2 * BINS_PER_SIDE]: bins of one width, those at zero with their neighbours' counts."""
    middle = BINS_PER_SIDE - 1
    left, right = seen.counts[:middle], seen.counts[middle + 1 :]
    return np.concatenate([left, left[-1:], right[:1], right])


def divergences(counts: Array, starts: Array, ends: Array) -> Array:
    """KL(P || Q) of the codes that cover the bins from ``starts`` to ``ends``, for each pair.

    All pairs at once, from running sums.

    Args:
        counts: Of the bins; not negative.
        starts: int [m]; the first bin of each range.
        ends: int [m]; the bin after the last, at least ``LEVELS`` further.

    Returns:
        float64 [m].
    """
    total = float(counts.sum())
    below, filled = _running(counts), _running(counts > 0)
    entropy = _running(_x_log_x(counts.astype(np.float64)))
    left, right = below[starts], total - below[ends]
    first, last = counts[starts], counts[ends - 1]
    # sum of P log P, with the outliers counted in the first and the last bin.
    reference = entropy[ends] - entropy[starts]
    reference += _x_log_x(first + left) - _x_log_x(first)
    reference += _x_log_x(last + right) - _x_log_x(last)
    bounds = starts[:, None] + (ends - starts)[:, None] * np.arange(LEVELS + 1) // LEVELS
    sums = np.diff(below[bounds], axis=1)
    spread = np.diff(filled[bounds], axis=1)
    spread[:, 0] += (first == 0) & (left > 0)
    spread[:, -1] += (last == 0) & (right > 0)
    mass: Array = np.array(sums)
    mass[:, 0] += left
    mass[:, -1] += right
    # A level without mass has no weight: what its logarithm is does not matter.
    logarithms = np.log(np.maximum(sums, EMPTY) / np.maximum(spread, 1))
    found: Array = (reference - (mass * logarithms).sum(axis=1)) / total
    found += np.log(np.maximum(sums.sum(axis=1), EMPTY) / total)
    return found


def _running(values: Array) -> Array:
    """The sums of all values before each place, and of all; exact below 2 ** 53."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _x_log_x(values: Array) -> Array:
    found: Array = values * np.log(np.maximum(values, 1.0))
    return found
