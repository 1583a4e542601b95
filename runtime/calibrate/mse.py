"""mse: the range with the least squared quantization error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxfold.passes.constants import Array
from onnxfold.runtime.calibrate.histogram import Histogram, HistogramMethod
from onnxfold.runtime.calibrate.method import Range
from onnxfold.runtime.calibrate.reconstruction import Density

_SHRUNK = 2.0 ** (-np.arange(49) / 4)  # as far as single bins of the histogram
_ROUNDS = (2.0 ** (np.arange(-6, 7) / 12), 2.0 ** (np.arange(-6, 7) / 72))


@dataclass(frozen=True)
class Mse(HistogramMethod):
    """Minimizes the sum of rounding and saturation errors of 8-bit codes over the histogram.

    First both ends are pulled in to the same magnitude, then each end is moved by itself.
    """

    name: ClassVar[str] = "mse"

    def search(self, seen: Histogram) -> Range:
        """See ``HistogramMethod``."""
        density = Density.coarse(seen)
        low, high = seen.extremes.low, seen.extremes.high
        magnitudes = _SHRUNK * max(-low, high)
        best = _best(density, np.maximum(-magnitudes, low), np.minimum(magnitudes, high))
        for factors in _ROUNDS:
            lows = np.maximum(best[0] * factors, low)
            best = _best(density, lows, np.full_like(lows, best[1]))
            highs = np.minimum(best[1] * factors, high)
            best = _best(density, np.full_like(highs, best[0]), highs)
        return best


def _best(density: Density, lows: Array, highs: Array) -> Range:
    """The range of the least error; the first of equal ones."""
    index = int(np.argmin(density.squared_error(lows, highs)))
    return float(lows[index]), float(highs[index])
