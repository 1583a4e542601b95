"""moving-average: the lowest and the highest value of a sample, averaged over samples.

As torch's ``MovingAverageMinMaxObserver``, whose state is low = (1 - c) low + c low_of_sample, but
without its bias towards the first sample: the weights (1 - c) ** age are normalized, as Kingma and
Ba do in "Adam" (2015), section 3. The order of the samples matters. Shards merge to the same bits
all the same, because the extremes are kept by the number of their sample, as long as their weights
are above the precision of float64.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field
from typing import ClassVar

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import UsageError
from onnxfold.runtime.calibrate.extremes import Extremes
from onnxfold.runtime.calibrate.method import Method, Range

_PRECISION_BITS = 53


@dataclass
class RecentExtremes:
    """Observes one tensor: the extremes of each of the latest ``horizon`` samples.

    Attributes:
        horizon: Samples that far behind the latest are forgotten.
        samples: Numbers of the samples, in the order they came in.
        lows: The lowest value of each.
        highs: The highest value of each.
    """

    horizon: int
    samples: array[int] = field(default_factory=lambda: array("q"))
    lows: array[float] = field(default_factory=lambda: array("d"))
    highs: array[float] = field(default_factory=lambda: array("d"))

    def update(self, values: Array, sample: int = 0) -> None:
        """Take in the ``values`` (any float dtype and shape) of sample number ``sample``.

        Raises:
            ValueError: A value is NaN or infinite.
        """
        fresh = Extremes()
        fresh.update(values)
        found = fresh.range()
        if found is None:
            return
        self._append(sample, *found)
        if len(self.samples) > 2 * self.horizon:
            self._forget()

    def merge(self, other: RecentExtremes) -> None:
        """Take in all that ``other`` has seen; the numbers of samples tell the order."""
        for each in zip(other.samples, other.lows, other.highs, strict=True):
            self._append(*each)
        self._forget()

    def recent(self) -> list[tuple[int, float, float]]:
        """(age, lowest, highest) of the latest samples, the oldest first."""
        latest = max(self.samples, default=0)
        rows = sorted(zip(self.samples, self.lows, self.highs, strict=True))
        aged = ((latest - sample, low, high) for sample, low, high in rows)
        return [row for row in aged if row[0] < self.horizon]

    def _append(self, sample: int, low: float, high: float) -> None:
        self.samples.append(sample)
        self.lows.append(low)
        self.highs.append(high)

    def _forget(self) -> None:
        oldest = max(self.samples, default=0) - self.horizon
        rows = list(zip(self.samples, self.lows, self.highs, strict=True))
        self.samples, self.lows, self.highs = array("q"), array("d"), array("d")
        for row in rows:
            if row[0] > oldest:
                self._append(*row)


@dataclass(frozen=True)
class MovingAverage(Method[RecentExtremes]):
    """The mean extremes of the samples, later ones counting more; depends on their order.

    Attributes:
        constant: In (0, 1): how much a sample counts for; the weight of earlier ones shrinks by
            ``1 - constant`` a sample.
    """

    constant: float = 0.01

    name: ClassVar[str] = "moving-average"

    def __post_init__(self) -> None:
        """Check the option."""
        if not 0.0 < self.constant < 1.0:
            raise UsageError(f"moving-average: the constant {self.constant} is not in (0, 1)")

    def new_observer(self) -> RecentExtremes:
        """See ``Method``."""
        # What is older weighs less than the last bit of the sum.
        return RecentExtremes(math.ceil(-_PRECISION_BITS / math.log2(1.0 - self.constant)))

    def range(self, seen: RecentExtremes) -> Range | None:
        """See ``Method``."""
        rows = seen.recent()
        if not rows:
            return None
        weights = [(1.0 - self.constant) ** age for age, _, _ in rows]
        total = math.fsum(weights)
        low = math.fsum(w * row[1] for w, row in zip(weights, rows, strict=True)) / total
        high = math.fsum(w * row[2] for w, row in zip(weights, rows, strict=True)) / total
        # Rounding must not move the mean of equal numbers.
        lows, highs = [row[1] for row in rows], [row[2] for row in rows]
        low = min(max(low, min(lows)), max(lows))
        return low, min(max(high, min(highs), low), max(highs))
