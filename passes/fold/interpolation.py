"""The weights of Resize with interpolation, one matrix an axis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from onnxfold.passes.constants import Array

COORDINATES = frozenset(
    {
        "align_corners",
        "asymmetric",
        "half_pixel",
        "half_pixel_symmetric",
        "pytorch_half_pixel",
    }
)
"""The coordinate transformations that are known here."""

_NEAR = 2.0**-20  # of a step between elements: 2^-12 codes


@dataclass(frozen=True)
class ResizedAxis:
    """One axis of a Resize, as the ONNX operator specification defines it.

    Attributes:
        old: The size before.
        new: The size after.
        scale: What the node gives as scale, or new / old where it gives sizes.
        coordinates: The coordinate transformation.
    """

    old: int
    new: int
    scale: float
    coordinates: str

    def linear(self) -> Array:
        """The matrix (float64, [new, old]) of linear interpolation; rows sum to 1."""
        at = np.clip(self._positions(), 0, self.old - 1)
        first = np.floor(at).astype(np.int64)
        fraction = at - first
        return self._gather([(first, 1.0 - fraction), (first + 1, fraction)])

    def cubic(self, coefficient: float, *, exclude_outside: bool) -> Array:
        """The matrix (float64, [new, old]) of cubic convolution; rows sum to 1.

        Keys, "Cubic convolution interpolation for digital image processing" (1981).

        Args:
            coefficient: The parameter a of the kernel.
            exclude_outside: Whether elements outside have weight 0 instead of being the edge's.
        """
        at = self._positions()
        first = np.floor(at).astype(np.int64)
        taps: list[tuple[Array, Array]] = []
        for offset in range(-1, 3):
            index = first + offset
            weight = _cubic_kernel(np.abs(at - index), coefficient)
            outside = (index < 0) | (index >= self.old)
            taps.append((index, np.where(outside, 0.0, weight) if exclude_outside else weight))
        matrix = self._gather(taps)
        return matrix / matrix.sum(axis=1, keepdims=True)

    def _gather(self, taps: list[tuple[Array, Array]]) -> Array:
        """The matrix of weighted elements; what lies outside is the element at the edge."""
        matrix = np.zeros((self.new, self.old))
        rows = np.arange(self.new)
        for index, weight in taps:
            np.add.at(matrix, (rows, np.clip(index, 0, self.old - 1)), weight)
        return matrix

    def _positions(self) -> Array:
        """Where each new element lies among the old (float64).

        Where the specification has it, if float32, in which runtimes compute, comes so near that
        only ties can tell: there all weights are fractions with one small denominator. Else where
        float32 has it.
        """
        places = np.array([Fraction(index) for index in range(self.new)], object)
        exact = self._places(places, Fraction, self._ratio()).astype(np.float64)
        index: Array = np.arange(self.new, dtype=np.float32)
        found = self._places(index, _real, _real(self.scale)).astype(np.float64)
        return exact if np.all(np.abs(exact - found) <= _NEAR) else found

    def _ratio(self) -> Fraction:
        """The scale; as float32 has it, that of a fraction of the sizes is taken for it."""
        ratio = Fraction(self.new, self.old)
        return ratio if _real(self.scale) == _real(float(ratio)) else Fraction(self.scale)

    def _places(self, index: Array, number: Callable[[float], Any], scale: Any) -> Array:
        """Where each new element lies among the old, in the arithmetic of ``number``."""
        half = number(0.5)
        unshifted: Array = (index + half) / scale
        match self.coordinates:
            case "half_pixel":
                return unshifted - half
            case "half_pixel_symmetric":
                covered = number(self.new) / (scale * number(self.old))
                return number(self.old / 2) * (number(1) - covered) + unshifted - half
            case "pytorch_half_pixel":
                return unshifted - half if self.new > 1 else index
            case "align_corners":
                return index * number(self.old - 1) / number(max(self.new - 1, 1))
            case "asymmetric":
                return index / scale
            case _:
                raise ValueError(f"unknown coordinate transformation {self.coordinates}")


def _real(number: float) -> Array:
    return np.asarray(number, np.float32)


def _cubic_kernel(distance: Array, a: float) -> Array:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
