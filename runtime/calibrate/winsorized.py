"""winsorized: the range that is left when the most extreme values are pulled in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from onnxfold.passes.errors import UsageError
from onnxfold.runtime.calibrate.histogram import Histogram, HistogramMethod
from onnxfold.runtime.calibrate.method import Range


@dataclass(frozen=True)
class Winsorized(HistogramMethod):
    """The range of the winsorized sample: at each end floor(fraction * n) values count as the next.

    Unlike a percentile it cuts off whole values only: of fewer than 1 / fraction values, none.

    Attributes:
        fraction: In [0, 0.5), at each end.
    """

    fraction: float = 0.0001

    name: ClassVar[str] = "winsorized"

    def __post_init__(self) -> None:
        """Check the option."""
        if not 0.0 <= self.fraction < 0.5:
            raise UsageError(f"winsorized: the fraction {self.fraction} is not in [0, 0.5)")

    def search(self, seen: Histogram) -> Range:
        """See ``HistogramMethod``."""
        total = seen.total
        pulled = math.floor(self.fraction * total)
        return seen.order_statistic(pulled + 1), seen.order_statistic(total - pulled)
