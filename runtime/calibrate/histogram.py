"""A histogram in one pass, and what methods read from it: quantiles, order statistics, moments.

Values are counted by their magnitude in widths, rounded towards zero, on either side of zero; the
width is a power of two. When a value falls outside, the width doubles and neighbouring bins merge,
which gives the very counts that the wider grid would have given from the start. So no first pass
has to find the range, and the result depends neither on the order of the samples nor on how they
were split.
"""

from __future__ import annotations

import math
import threading
from abc import abstractmethod
from dataclasses import dataclass, field

import numpy as np

from onnxfold.passes.constants import Array
from onnxfold.runtime.calibrate.extremes import Extremes
from onnxfold.runtime.calibrate.method import Method, Range

_LOG2_BINS = 12

BINS_PER_SIDE = 1 << _LOG2_BINS
"""Bins on either side of zero, the middle one included; the larger side fills half at least."""

_MIDDLE = BINS_PER_SIDE - 1
_MIN_EXPONENT = -120  # the reciprocal of the width must stay a float32
_CHUNK = 1 << 15  # values at a time, so that the buffers stay in the cache


class _Buffers(threading.local):
    """What a thread counts in, made once: fresh memory costs more than the arithmetic."""

    def __init__(self) -> None:
        self.scaled: Array = np.empty(_CHUNK, np.float32)
        self.places: Array = np.empty(_CHUNK, np.int32)
        self.bins: Array = np.empty(_CHUNK, np.intp)


_BUFFERS = _Buffers()


@dataclass
class Histogram:
    """Observes one tensor; 64 KiB whatever the number of samples.

    Attributes:
        exponent: The width of a bin is 2 ** exponent.
        counts: int64 [2 * BINS_PER_SIDE - 1]; the bin k places right of the middle holds values
            of k to k + 1 widths, likewise to the left; the middle one both sides of zero.
        extremes: The exact lowest and highest value.
    """

    exponent: int = _MIN_EXPONENT
    counts: Array = field(default_factory=lambda: np.zeros(2 * _MIDDLE + 1, np.int64))
    extremes: Extremes = field(default_factory=Extremes)

    def update(self, values: Array, sample: int = 0) -> None:
        """Take in ``values`` (any float dtype and shape) of any sample, rounded to float32.

        Raises:
            ValueError: A value is NaN or infinite.
        """
        flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
        if flat.size == 0:
            return
        fresh = Extremes()
        fresh.update(flat)
        self.extremes.merge(fresh)
        self._widen(_exponent_for(max(-fresh.low, fresh.high)))
        per_width = np.float32(math.ldexp(1.0, -self.exponent))
        for start in range(0, flat.size, _CHUNK):
            chunk = flat[start : start + _CHUNK]
            scaled = _BUFFERS.scaled[: chunk.size]
            places, bins = _BUFFERS.places[: chunk.size], _BUFFERS.bins[: chunk.size]
            # Exact, for the factor is a power of two; what underflows belongs in the middle.
            np.multiply(chunk, per_width, out=scaled)
            # To int64 by way of int32, which processors convert to several times as fast.
            np.copyto(places, scaled, casting="unsafe")
            np.add(places, _MIDDLE, out=bins)
            self.counts += np.bincount(bins, minlength=self.counts.size)

    def merge(self, other: Histogram) -> None:
        """Take in all that ``other`` has seen; bit-identical to one histogram of everything."""
        self._widen(other.exponent)
        self.counts += _coarser(other.counts, self.exponent - other.exponent)
        self.extremes.merge(other.extremes)

    @property
    def total(self) -> int:
        """How many values were seen."""
        return int(self.counts.sum())

    @property
    def width(self) -> float:
        """The width of a bin; the middle one is twice as wide."""
        return math.ldexp(1.0, self.exponent)

    def edges(self) -> Array:
        """float64 [2 * BINS_PER_SIDE]: where the bins begin and end, cut to the values seen."""
        places = np.arange(1, BINS_PER_SIDE + 1) * self.width
        edges = np.concatenate([-places[::-1], places])
        return np.clip(edges, self.extremes.low, self.extremes.high)

    def quantile(self, fraction: float) -> float:
        """The value below which ``fraction`` of all values lie, interpolated inside its bin."""
        return self._value_at(fraction * self.total)

    def order_statistic(self, rank: int) -> float:
        """The value that is number ``rank`` from below, from 1 to ``total``; exact at either end.

        Between the ends it is placed as if its bin's values were spread evenly.
        """
        if rank == 1:
            return self.extremes.low
        if rank == self.total:
            return self.extremes.high
        return self._value_at(rank - 0.5)

    def moments(self) -> tuple[float, float]:
        """(mean, standard deviation), as if each bin's values were spread evenly over it."""
        edges = self.edges()
        seen = self.counts > 0
        lower, upper, counts = edges[:-1][seen], edges[1:][seen], self.counts[seen]
        # fsum rounds once, so that the result depends on nothing but the counts.
        mean = math.fsum(counts * (lower + upper) / 2) / self.total
        left, right = lower - mean, upper - mean
        squares = counts * (left * left + left * right + right * right) / 3
        return mean, math.sqrt(math.fsum(squares) / self.total)

    def _value_at(self, target: float) -> float:
        """The value that ``target`` of the values lie below."""
        cumulative = np.cumsum(self.counts)
        index = int(np.searchsorted(cumulative, target))
        inside = float(self.counts[index])
        below = float(cumulative[index]) - inside
        share = (target - below) / inside if inside else 0.0
        lower, upper = self._edges(index - _MIDDLE)
        return lower + share * (upper - lower)

    def _edges(self, place: int) -> tuple[float, float]:
        """The interval of the bin ``place`` right of the middle, cut to the values seen."""
        lower = (place if place > 0 else place - 1) * self.width
        upper = (place if place < 0 else place + 1) * self.width
        return max(lower, self.extremes.low), min(upper, self.extremes.high)

    def _widen(self, exponent: int) -> None:
        if exponent > self.exponent:
            self.counts = _coarser(self.counts, exponent - self.exponent)
            self.exponent = exponent


class HistogramMethod(Method[Histogram]):
    """A method that searches a histogram; the range it finds is cut to the values seen."""

    def new_observer(self) -> Histogram:
        """See ``Method``."""
        return Histogram()

    def range(self, seen: Histogram) -> Range | None:
        """See ``Method``."""
        whole = seen.extremes.range()
        if whole is None or whole[0] == whole[1]:
            return whole
        low, high = self.search(seen)
        low = min(max(low, whole[0]), whole[1])
        return low, min(max(high, low), whole[1])

    @abstractmethod
    def search(self, seen: Histogram) -> Range:
        """The range, from a histogram of at least two different values."""


def _exponent_for(magnitude: float) -> int:
    """The smallest exponent whose grid holds values up to ``magnitude``."""
    if magnitude == 0.0:
        return _MIN_EXPONENT
    return max(math.frexp(magnitude)[1] - _LOG2_BINS, _MIN_EXPONENT)


def _coarser(counts: Array, doublings: int) -> Array:
    """``counts`` on a grid whose bins are 2 ** doublings times as wide."""
    merged = 1 << min(doublings, _LOG2_BINS)
    right = _sums(counts[_MIDDLE:], merged)
    left = _sums(np.flip(counts[: _MIDDLE + 1]), merged)
    left[0] -= counts[_MIDDLE]  # the middle bin is counted on the right
    coarse = np.zeros_like(counts)
    coarse[_MIDDLE : _MIDDLE + right.size] = right
    coarse[_MIDDLE - left.size + 1 : _MIDDLE + 1] += left[::-1]
    return coarse


def _sums(counts: Array, merged: int) -> Array:
    """The sums of each ``merged`` neighbours."""
    sums: Array = counts.reshape(-1, merged).sum(axis=1)
    return sums
