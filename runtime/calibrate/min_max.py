"""min-max: the full range of the values seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxfold.runtime.calibrate.extremes import Extremes
from onnxfold.runtime.calibrate.method import Method, Range


@dataclass(frozen=True)
class MinMax(Method[Extremes]):
    """From the lowest to the highest value: nothing saturates, one outlier coarsens all codes."""

    name: ClassVar[str] = "min-max"

    def new_observer(self) -> Extremes:
        """See ``Method``."""
        return Extremes()

    def range(self, seen: Extremes) -> Range | None:
        """See ``Method``."""
        return seen.range()
