"""auto: for each tensor the method whose range loses least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxfold.runtime.calibrate.entropy import Entropy
from onnxfold.runtime.calibrate.histogram import Histogram, HistogramMethod
from onnxfold.runtime.calibrate.method import Range
from onnxfold.runtime.calibrate.mse import Mse
from onnxfold.runtime.calibrate.percentile import Percentile
from onnxfold.runtime.calibrate.reconstruction import Density
from onnxfold.runtime.calibrate.standard_deviation import StandardDeviation
from onnxfold.runtime.calibrate.winsorized import Winsorized

_METHODS: tuple[HistogramMethod, ...] = (
    Percentile(),
    Winsorized(),
    StandardDeviation(),
    Entropy(),
    Mse(),
)


@dataclass(frozen=True)
class Auto(HistogramMethod):
    """Of the full range and the ranges of all methods that read a histogram, the nearest.

    Nearest by the squared error of 8-bit codes, like mse, but over all bins and more candidates. Of
    equally near ones the first, and the full range comes first.
    """

    name: ClassVar[str] = "auto"

    def search(self, seen: Histogram) -> Range:
        """See ``HistogramMethod``."""
        found = [each.range(seen) for each in _METHODS]
        ranges = [(seen.extremes.low, seen.extremes.high), *(each for each in found if each)]
        lows = np.array([low for low, _ in ranges])
        highs = np.array([high for _, high in ranges])
        return ranges[int(np.argmin(Density.of(seen).squared_error(lows, highs)))]
