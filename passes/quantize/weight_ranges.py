"""Symmetric weight scales of least squared error.

With codes k = round(|w| / s), at most the largest code, a channel's error is
sum (|w| - s k)^2 = W - 2 s A + s^2 B, where A = sum |w| k and B = sum k^2. As s falls, one code
after another goes up by one, at s = |w| / (k + 1/2): sorting these points gives A and B of every
set of codes in turn, each of which is best at s = A / B, with the error W - A^2 / B. So the best
scale of an interval is found exactly. (Minimizing the squared error over the clipping range:
Choukroun et al., "Low-bit Quantization of Neural Networks for Efficient Inference", 2019.)
"""

from __future__ import annotations

import numpy as np

from onnxfold.passes.constants import Array

_CLIPPING = np.linspace(0.95, 0.05, 19)
_ROOM = 64.0  # half the interval searched exactly, in scales over weights: bounds the points
_WIDEST = 0.5


def least_error_scales(scales: Array, lowest: Array, weights: Array, magnitude: int) -> Array:
    """Scales with the least squared error of weights, never a greater one than ``scales`` have.

    The clipping range is searched coarsely from 5 to 100 % of the full one, then exactly around
    the best: within half of it for short channels, in which single weights matter, and within
    less for long ones.

    Args:
        scales: Where to start, float32 [channels]: those that clip nothing.
        lowest: Scales must not be below these, [channels]; ``scales`` are not.
        weights: [channels, weights of a channel].
        magnitude: The largest code.

    Returns:
        float32 [channels].
    """
    magnitudes = np.abs(weights.astype(np.float32))
    best = scales.astype(np.float32)
    least = _errors(magnitudes, best, magnitude)
    for ratio in _CLIPPING:
        trial = np.maximum(scales * ratio, lowest).astype(np.float32)
        best, least = _better(magnitudes, best, least, trial, magnitude)
    exact = [
        max(_exact(row.astype(np.float64), float(scale), magnitude), float(low))
        for row, scale, low in zip(magnitudes, best, lowest, strict=True)
    ]
    # Rounding to float32 may go below a limit that is none.
    trial = np.maximum(np.array(exact), lowest).astype(np.float32)
    trial = np.where(trial < lowest, best, trial)
    return _better(magnitudes, best, least, trial, magnitude)[0]


def _better(
    magnitudes: Array, best: Array, least: Array, trial: Array, magnitude: int
) -> tuple[Array, Array]:
    """Channel by channel the scale of less error, and its error."""
    errors = _errors(magnitudes, trial, magnitude)
    wins = errors < least
    return np.where(wins, trial, best), np.where(wins, errors, least)


def _errors(magnitudes: Array, scales: Array, magnitude: int) -> Array:
    """The squared error of each channel, float64 [channels]."""
    column = scales[:, np.newaxis]
    steps = magnitudes / column
    np.rint(steps, out=steps)
    np.minimum(steps, np.float32(magnitude), out=steps)
    steps *= column
    steps -= magnitudes
    errors: Array = np.einsum("ij,ij->i", steps, steps, dtype=np.float64)
    return errors


def _exact(row: Array, center: float, magnitude: int) -> float:
    """The best scale of one channel among those near ``center``."""
    reach = min(_WIDEST, _ROOM / max(row.size, 1))
    first = np.minimum(np.rint(row / (center * (1 + reach))), magnitude)
    last = np.minimum(np.rint(row / (center * (1 - reach))), magnitude)
    counts = (last - first).astype(np.int64)
    starts = np.repeat(first - (np.cumsum(counts) - counts), counts)
    codes: Array = starts + np.arange(int(counts.sum()))
    values = np.repeat(row, counts)
    order = np.argsort(-values / (codes + 0.5), kind="stable")
    products = np.cumsum(np.concatenate(([row @ first], values[order])))
    squares = np.cumsum(np.concatenate(([first @ first], 2 * codes[order] + 1)))
    if squares[-1] == 0:
        return center
    gains = np.divide(products**2, squares, out=np.zeros_like(products), where=squares > 0)
    place = int(np.argmax(gains))
    return float(products[place] / squares[place]) if squares[place] else center
