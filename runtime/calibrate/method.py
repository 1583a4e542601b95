"""What calibration methods have in common: an observer a tensor, and a range read from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, Protocol, TypeAlias, TypeVar

from onnxfold.passes.constants import Array

Range: TypeAlias = tuple[float, float]
"""(lowest, highest) real number that codes shall stand for."""

SelfT = TypeVar("SelfT")


class Observer(Protocol):
    """Sees all values of one tensor, in memory that does not grow with their number."""

    def update(self, values: Array, sample: int = 0) -> None:
        """Take in the ``values`` of sample number ``sample``; empty arrays count for nothing.

        Raises:
            ValueError: A value is NaN or infinite.
        """

    def merge(self: SelfT, other: SelfT) -> None:
        """Take in all that ``other`` has seen: the same bits as one observer of everything."""


ObserverT = TypeVar("ObserverT", bound=Observer)


class Method(ABC, Generic[ObserverT]):
    """How a range is taken from the values of a tensor; a frozen dataclass of its options.

    Attributes:
        name: What users call it.
    """

    name: ClassVar[str]

    @abstractmethod
    def new_observer(self) -> ObserverT:
        """An observer that has seen nothing."""

    @abstractmethod
    def range(self, seen: ObserverT) -> Range | None:
        """The range of a tensor; None where no value was seen."""
