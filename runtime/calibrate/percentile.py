"""A histogram in one pass, and the percentiles read from it.

The bins are a fixed grid around zero whose width is a power of two. When a value falls outside,
the width doubles and neighbouring bins merge, which gives the very counts that the wider grid
would have given from the start. So no first pass has to find the range, and the result depends
neither on the order of the samples nor on how they were split.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from onnxfold.passes.constants import Array
from onnxfold.runtime.calibrate.min_max import MinMax

BINS_PER_SIDE = 2048
"""Bins below zero, and bins above it; at least half of the larger side is used."""

_LOG2_BINS = 11
_MIN_EXPONENT = -120  # the reciprocal of the width must stay a float32
_CHUNK = 1 << 16  # values at a time, so that the buffers stay in the cache


@dataclass
class Histogram:
    """Observes one tensor; 32 KiB whatever the number of samples.

    Attributes:
        exponent: The width of a bin is 2 ** exponent.
        counts: int64 [2 * BINS_PER_SIDE]; bin i holds values in
            [i - BINS_PER_SIDE, i + 1 - BINS_PER_SIDE) * 2 ** exponent.
        extremes: The exact lowest and highest value.
    """

    exponent: int = _MIN_EXPONENT
    counts: Array = field(default_factory=lambda: np.zeros(2 * BINS_PER_SIDE, np.int64))
    extremes: MinMax = field(default_factory=MinMax)

    def update(self, values: Array) -> None:
        """Take in ``values`` (any float dtype and shape), rounded to float32.

        Raises:
            ValueError: A value is NaN or infinite.
        """
        flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
        if flat.size == 0:
            return
        fresh = MinMax()
        fresh.update(flat)
        self.extremes.merge(fresh)
        self._widen(_exponent_for(max(-fresh.low, fresh.high)))
        per_width = np.float32(math.ldexp(1.0, -self.exponent))
        scaled = np.empty(min(_CHUNK, flat.size), np.float32)
        bins = np.empty(scaled.shape, np.intp)
        for start in range(0, flat.size, _CHUNK):
            chunk = flat[start : start + _CHUNK]
            position, index = scaled[: chunk.size], bins[: chunk.size]
            # Exact: the factor is a power of two, and the sum an integer below 2**24.
            np.multiply(chunk, per_width, out=position)
            np.floor(position, out=position)
            np.add(position, np.float32(BINS_PER_SIDE), out=position)
            np.copyto(index, position, casting="unsafe")
            self.counts += np.bincount(index, minlength=self.counts.size)

    def merge(self, other: Histogram) -> None:
        """Take in all that ``other`` has seen; bit-identical to one histogram of everything."""
        self._widen(other.exponent)
        self.counts += _coarser(other.counts, self.exponent - other.exponent)
        self.extremes.merge(other.extremes)

    def quantile(self, fraction: float) -> float:
        """The value below which ``fraction`` of all values lie, interpolated inside its bin."""
        cumulative = np.cumsum(self.counts)
        target = fraction * float(cumulative[-1])
        index = int(np.searchsorted(cumulative, target))
        inside = float(self.counts[index])
        below = float(cumulative[index]) - inside
        share = (target - below) / inside if inside else 0.0
        value = math.ldexp(index - BINS_PER_SIDE + share, self.exponent)
        return min(max(value, self.extremes.low), self.extremes.high)

    def range(self, percentile: float) -> tuple[float, float] | None:
        """The interval holding ``percentile`` % of the values, as much cut off at either end.

        Returns:
            (low, high), or None before the first value.
        """
        if self.extremes.range() is None:
            return None
        tail = (100.0 - percentile) / 200.0
        return self.quantile(tail), self.quantile(1.0 - tail)

    def _widen(self, exponent: int) -> None:
        if exponent > self.exponent:
            self.counts = _coarser(self.counts, exponent - self.exponent)
            self.exponent = exponent


def _exponent_for(magnitude: float) -> int:
    """The smallest exponent whose grid holds values up to ``magnitude``."""
    return max(math.frexp(magnitude)[1] - _LOG2_BINS, _MIN_EXPONENT)


def _coarser(counts: Array, doublings: int) -> Array:
    """``counts`` on a grid whose bins are 2 ** doublings times as wide."""
    merged = 1 << min(doublings, _LOG2_BINS)
    used = counts.reshape(-1, merged).sum(axis=1)
    coarse = np.zeros_like(counts)
    start = BINS_PER_SIDE - used.size // 2
    coarse[start : start + used.size] = used
    return coarse
