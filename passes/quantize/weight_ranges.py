"""Symmetric weight scales of least squared error.

With codes k = round(|w| / s), at most the largest code, a channel's error is
sum (|w| - s k)^2 = W - 2 s A + s^2 B, where A = sum |w| k and B = sum k^2. As s falls, one code
after another goes up by one, at s = |w| / (k + 1/2): sorting these points gives A and B of every
set of codes in turn, each of which is best at s = A / B, with the error W - A^2 / B. So the best
scale of an interval is found exactly. Where weights matter differently, each counts in all these
sums as often as its importance says: h (w - q)^2 with h = E[x^2] of the input that it multiplies is
what its error does to the output. (Minimizing the squared error over the clipping range: Choukroun
et al., "Low-bit Quantization of Neural Networks for Efficient Inference", 2019.)
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from onnxfold.passes.constants import Array

_CLIPPING = np.linspace(0.95, 0.05, 19)
_ROOM = 64.0  # half the interval searched exactly, in scales over weights: bounds the points
_WIDEST = 0.5
_MOST_KNOWN = 1024
_KNOWN: dict[bytes, Array] = {}
"""What was found before, by what was given: every candidate of a search has the same weights."""


def least_error_scales(
    scales: Array,
    lowest: Array,
    weights: Array,
    magnitude: int,
    importance: Array | None = None,
) -> Array:
    """Scales with the least squared error of weights, never a greater one than ``scales`` have.

    The clipping range is searched coarsely from 5 to 100 % of the full one, then exactly around
    the best: within half of it for short channels, in which single weights matter, and within
    less for long ones.

    Args:
        scales: Where to start, float32 [channels]: those that clip nothing.
        lowest: Scales must not be below these, [channels]; ``scales`` are not.
        weights: [channels, weights of a channel].
        magnitude: The largest code.
        importance: How much the squared error of each weight counts, of the weights' shape, not
            negative; None where all count the same.

    Returns:
        float32 [channels].
    """
    key = _digest(magnitude, scales, lowest, weights, importance)
    if key not in _KNOWN:
        while len(_KNOWN) >= _MOST_KNOWN:
            _KNOWN.pop(next(iter(_KNOWN)))
        _KNOWN[key] = _searched(scales, lowest, weights, magnitude, importance)
    found: Array = np.array(_KNOWN[key])
    return found


def _digest(magnitude: int, *arrays: Array | None) -> bytes:
    digest = hashlib.blake2b(str(magnitude).encode(), digest_size=16)
    for each in arrays:
        digest.update(b"none" if each is None else f"{each.dtype} {each.shape}".encode())
        digest.update(b"" if each is None else each.tobytes())
    return digest.digest()


def _searched(
    scales: Array, lowest: Array, weights: Array, magnitude: int, importance: Array | None
) -> Array:
    magnitudes = np.abs(weights.astype(np.float32))
    factors = None if importance is None else _normalized(importance)
    search = _Search(magnitudes, factors, magnitude)
    best = scales.astype(np.float32)
    least = search.errors(best)
    for ratio in _CLIPPING:
        trial = np.maximum(scales * ratio, lowest).astype(np.float32)
        best, least = search.better(best, least, trial)
    exact = [
        max(search.exact(channel, float(best[channel])), float(lowest[channel]))
        for channel in range(len(best))
    ]
    # Rounding to float32 may go below a limit that is none.
    trial = np.maximum(np.array(exact), lowest).astype(np.float32)
    trial = np.where(trial < lowest, best, trial)
    return search.better(best, least, trial)[0]


@dataclass(frozen=True, eq=False)
class _Search:
    """The weights of some channels, whose scales are compared.

    Attributes:
        magnitudes: |w|, float32 [channels, weights of a channel].
        importance: float32 of the same shape, or None where all are 1.
        largest: The largest code.
    """

    magnitudes: Array
    importance: Array | None
    largest: int

    def better(self, best: Array, least: Array, trial: Array) -> tuple[Array, Array]:
        """Channel by channel the scale of less error, and its error."""
        errors = self.errors(trial)
        wins = errors < least
        return np.where(wins, trial, best), np.where(wins, errors, least)

    def errors(self, scales: Array) -> Array:
        """The squared error of each channel, float64 [channels]."""
        column = scales[:, np.newaxis]
        steps = self.magnitudes / column
        np.rint(steps, out=steps)
        np.minimum(steps, np.float32(self.largest), out=steps)
        steps *= column
        steps -= self.magnitudes
        if self.importance is None:
            plain: Array = np.einsum("ij,ij->i", steps, steps, dtype=np.float64)
            return plain
        weighted: Array = np.einsum("ij,ij,ij->i", self.importance, steps, steps, dtype=np.float64)
        return weighted

    def exact(self, channel: int, center: float) -> float:
        """The best scale of one channel among those near ``center``."""
        row = self.magnitudes[channel].astype(np.float64)
        factors = np.ones_like(row)
        if self.importance is not None:
            factors = self.importance[channel].astype(np.float64)
        reach = min(_WIDEST, _ROOM / max(row.size, 1))
        first = np.minimum(np.rint(row / (center * (1 + reach))), self.largest)
        last = np.minimum(np.rint(row / (center * (1 - reach))), self.largest)
        counts = (last - first).astype(np.int64)
        starts = np.repeat(first - (np.cumsum(counts) - counts), counts)
        codes: Array = starts + np.arange(int(counts.sum()))
        values, weight = np.repeat(row, counts), np.repeat(factors, counts)
        order = np.argsort(-values / (codes + 0.5), kind="stable")
        products = _running(factors * row, first, weight * values, order)
        squares = _running(factors * first, first, weight * (2 * codes + 1), order)
        if squares[-1] == 0:
            return center
        gains = np.divide(products**2, squares, out=np.zeros_like(products), where=squares > 0)
        place = int(np.argmax(gains))
        return float(products[place] / squares[place]) if squares[place] else center


def _running(factors: Array, first: Array, steps: Array, order: Array) -> Array:
    """The sum of factors times first codes, and what it becomes code by code."""
    sums: Array = np.cumsum(np.concatenate(([factors @ first], steps[order])))
    return sums


def _normalized(importance: Array) -> Array:
    """At most 1 in each channel: only ratios matter, and float32 must hold them."""
    largest = importance.max(axis=1, keepdims=True, initial=0.0)
    scaled: Array = importance / np.where(largest > 0, largest, 1.0)
    return scaled.astype(np.float32)
