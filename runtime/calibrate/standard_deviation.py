"""standard-deviation: so many standard deviations on either side of the mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxfold.passes.errors import UsageError
from onnxfold.runtime.calibrate.histogram import Histogram, HistogramMethod
from onnxfold.runtime.calibrate.method import Range


@dataclass(frozen=True)
class StandardDeviation(HistogramMethod):
    """The mean, ``sigmas`` standard deviations either way, cut to the values seen.

    Attributes:
        sigmas: Positive. With 8 bits the squared error is least at 3.9 for normal values, at 7.0
            for Laplace ones (Banner et al., "Post training 4-bit quantization of convolutional
            networks for rapid-deployment", 2019): the default is for tails between them.
    """

    sigmas: float = 6.0

    name: ClassVar[str] = "standard-deviation"

    def __post_init__(self) -> None:
        """Check the option."""
        if not 0.0 < self.sigmas < float("inf"):
            raise UsageError(f"standard-deviation: {self.sigmas} sigmas are not a positive number")

    def search(self, seen: Histogram) -> Range:
        """See ``HistogramMethod``."""
        mean, deviation = seen.moments()
        return mean - self.sigmas * deviation, mean + self.sigmas * deviation
