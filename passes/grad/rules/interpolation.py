"""Interpolation along one axis: which elements are read, by what weights, and where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.grad.builder import Builder, dtype_of


@dataclass(frozen=True)
class Taps:
    """The elements of one axis that are read at every place: [N, taps, places].

    Attributes:
        index: Which: whole numbers in a real type.
        weight: What they are multiplied with; None for 1.
        count: The number of taps.
    """

    index: ir.Value
    weight: ir.Value | None
    count: int


def nearest_tap(position: ir.Value) -> Taps:
    """The element at a position, [N, 1, places], that is whole already."""
    return Taps(position, None, 1)


def linear_taps(b: Builder, position: ir.Value) -> Taps:
    """The two elements around a position, [N, 1, places]."""
    low = b.op("Floor", position)
    fraction = b.sub(position, low)
    weight = b.add(b.mul(fraction, _column(b, low, (-1, 1))), _column(b, low, (1, 0)))
    return Taps(b.add(low, _column(b, low, (0, 1))), weight, 2)


def cubic_taps(b: Builder, position: ir.Value, a: float) -> Taps:
    """The four elements around a position, by the cubic convolution of Keys with parameter a.

    Of distance d, the inner two weigh (a+2) d^3 - (a+3) d^2 + 1, the outer a d^3 - 5a d^2 + 8a d -
    4a.
    """
    low = b.op("Floor", position)
    fraction = b.sub(position, low)
    distance = b.add(
        b.mul(fraction, _column(b, low, (1, 1, -1, -1))), _column(b, low, (1, 0, 1, 2))
    )
    outer, inner = (a, -5 * a, 8 * a, -4 * a), (a + 2, -(a + 3), 0.0, 1.0)
    factors = [_column(b, low, each) for each in zip(outer, inner, inner, outer, strict=True)]
    weight = b.add(b.mul(distance, factors[0]), factors[1])
    for factor in factors[2:]:
        weight = b.add(b.mul(weight, distance), factor)
    return Taps(b.add(low, _column(b, low, (-1, 0, 1, 2))), weight, 4)


def reflected(b: Builder, position: ir.Value, size: ir.Value, aligned: bool) -> ir.Value:
    """``position`` thrown back at both ends: at centres of elements, or at their outer edges."""
    low = b.number(0.0 if aligned else -0.5, position)
    one = b.number(1.0, position)
    # A single element that is thrown back at its centre stays there, whatever the span.
    span = b.op("Max", b.sub(size, one), one) if aligned else size
    away = b.op("Abs", b.sub(position, low))
    turns = b.op("Floor", b.div(away, span))
    rest = b.sub(away, b.mul(turns, span))
    half = b.scale(turns, 0.5)
    even = b.op("Equal", half, b.op("Floor", half))
    return b.add(b.where(even, rest, b.sub(span, rest)), low)


def inside(b: Builder, taps: Taps, last: ir.Value, *, zeros: bool) -> Taps:
    """``taps`` moved onto the axis where they lie outside; with ``zeros``, those weigh nothing."""
    zero = b.number(0.0, taps.index)
    index = b.op("Min", b.op("Max", taps.index, zero), last)
    if not zeros:
        return Taps(index, taps.weight, taps.count)
    mask = b.cast(b.op("Equal", index, taps.index), dtype_of(taps.index))
    weight = mask if taps.weight is None else b.mul(taps.weight, mask)
    return Taps(index, weight, taps.count)


def _column(b: Builder, like: ir.Value, numbers: Sequence[float]) -> ir.Value:
    """A number a tap."""
    return b.constant(np.array(numbers, dtype_of(like).numpy()).reshape(-1, 1))
