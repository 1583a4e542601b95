"""The lowest and highest value seen, streamed and mergeable."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnxfold.passes.constants import Array


@dataclass
class Extremes:
    """Observes one tensor; holds two numbers whatever the number of samples.

    Attributes:
        low: Lowest value seen; +inf before the first.
        high: Highest value seen; -inf before the first.
    """

    low: float = math.inf
    high: float = -math.inf

    def update(self, values: Array, sample: int = 0) -> None:
        """Take in ``values`` (any float dtype and shape) of any sample; empty arrays do nothing.

        Raises:
            ValueError: A value is NaN or infinite.
        """
        if values.size == 0:
            return
        # Adding 0 turns -0.0 into 0.0: else which zero is kept would depend on the order.
        low, high = float(values.min()) + 0.0, float(values.max()) + 0.0
        # NaN anywhere makes numpy's minimum NaN, which onnxruntime's ReduceMin does not.
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("NaN" if math.isnan(low) else "infinite values")
        self.low, self.high = min(self.low, low), max(self.high, high)

    def merge(self, other: Extremes) -> None:
        """Take in all that ``other`` has seen."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def range(self) -> tuple[float, float] | None:
        """(lowest, highest), or None before the first value."""
        return None if self.low > self.high else (self.low, self.high)
