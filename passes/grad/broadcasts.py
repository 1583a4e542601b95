"""Remembers which written values only repeat a smaller one, so that fewer elements are computed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from onnxfold.passes.grad.shapes import same_dims

_BROADCASTING = frozenset({"Add", "Cast", "Div", "Mul", "Neg", "Sub", "Where"})


class Broadcasts:
    """What is known of values that hold one number, or repeat another value.

    The gradient of a sum is one number in many places: multiplied with something of the full
    shape, it need not be spread out first, and 1 need not be multiplied with at all.
    """

    def __init__(self) -> None:
        self._sources: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        self._numbers: dict[ir.Value, float] = {}

    def note_number(self, value: ir.Value, number: float) -> ir.Value:
        """Remember that ``value`` is ``number`` everywhere."""
        self._numbers[value] = number
        return value

    def note_expanded(self, value: ir.Value, source: ir.Value, like: ir.Value) -> ir.Value:
        """Remember that ``value`` is ``source`` expanded to the shape of ``like``."""
        self._sources[value] = source, like
        return value

    def narrowed(
        self, op_type: str, inputs: Sequence[ir.Value | None]
    ) -> tuple[Sequence[ir.Value | None], ir.Value | None]:
        """Inputs that give the same or less, and what the result is to be expanded to, if so."""
        full = [value for value in inputs if value is not None and value in self._sources]
        if op_type not in _BROADCASTING or not full:
            return inputs, None
        others = [value for value in inputs if value is not None and value not in self._sources]
        sources = [self._sources[value][0] if value in self._sources else value for value in inputs]
        if any(all(same_dims(other, value) for value in full) for other in others):
            return sources, None
        alike = all(same_dims(value, full[0]) for value in full)
        if alike and all(other.shape is not None and not len(other.shape) for other in others):
            return sources, self._sources[full[0]][1]
        return inputs, None

    def unchanged(self, op_type: str, inputs: Sequence[ir.Value | None]) -> ir.Value | None:
        """The input that the result is equal to: what is multiplied or divided by 1."""
        if op_type not in ("Div", "Mul") or len(inputs) != 2:
            return None
        left, right = inputs
        if left is None or right is None:
            return None
        if self._is_one(right, left):
            return left
        return right if op_type == "Mul" and self._is_one(left, right) else None

    def number(self, value: ir.Value) -> float | None:
        """What ``value`` is everywhere, where that is known."""
        return self._numbers.get(value)

    def computed(self, op_type: str, inputs: Sequence[ir.Value | None]) -> float | None:
        """What an operator gives for single numbers that are known."""
        known = [
            self._numbers.get(value)
            for value in inputs
            if value is not None and value.shape is not None and not len(value.shape)
        ]
        numbers = [number for number in known if number is not None]
        if op_type not in ("Mul", "Neg") or len(numbers) != len(inputs):
            return None
        return -numbers[0] if op_type == "Neg" else math.prod(numbers)

    def _is_one(self, value: ir.Value, beside: ir.Value) -> bool:
        if self._numbers.get(value) != 1 or value.dtype != beside.dtype or value.shape is None:
            return False
        if all(dim == 1 for dim in value.shape):
            return beside.shape is not None and len(value.shape) <= len(beside.shape)
        return same_dims(value, beside)
