"""Functions of unrounded products: of int32 accumulators, which no table of codes can hold.

Between knots that lie close enough a line stands for the function. How far it is off is computed
over all that the product can be: a thousandth of the codes may move, ten times fewer do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import Array
from onnxfold.passes.fold.lowering import Curve, Lowering, Operand, Refusal, Slopes
from onnxfold.passes.fold.numerics import ELEMENTWISE
from onnxfold.passes.fold.rules.functions import (
    covered_nodes,
    first_of,
    if_function,
    no_function,
    not_a_number,
    results,
)
from onnxfold.passes.fold.rules.refusals import not_rounded
from onnxfold.passes.fold.types import Quantized, TypeState
from onnxfold.passes.fold.unrounded import FunctionOf

_KNOTS = (256, 512, 1024, 2048, 4096)
_MEAN_ERROR = 1e-4  # in codes: as large a share of the results moves to the next code
_LARGEST_ERROR = 0.05
_POINTS = 2**15
_MOST_STEPS = 2.0**32  # of the whole domain: 4096 times as many, and 16 bits of a fraction, fit
_REFINEMENTS = 6
_BINARY_BITS = 16  # of a code: a position has as many
_SLOPE_ROUNDING = 1e-6
_MAGNITUDES = 2**13
_PART_OF_UNIT = 256


def if_curve(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """The node and what leads to it as a function of an unrounded product, if they are one."""
    output, want = node.outputs[0], types.want(node.outputs[0])
    for found in types.functions.get(output, ()):
        if types.accumulator(found.source) is None:
            continue
        if want is None:
            return not_rounded(output)
        lowering = _lowering(found, found.nodes, want, types)
        if isinstance(lowering, Lowering):
            types.put(output, Quantized(want))
        return lowering
    return None


def quantized_curve(node: ir.Node, want: AffineType, types: TypeState) -> Lowering | None:
    """A QuantizeLinear and what leads to it as such, where its input has no one rounding."""
    for found in types.functions.get(node.inputs[0], ()) if node.inputs[0] is not None else ():
        if found.nodes[-1].graph is node.graph and types.accumulator(found.source) is not None:
            lowering = _lowering(found, (*found.nodes, node), want, types)
            return lowering if isinstance(lowering, Lowering) else None
    return None


def _lowering(
    found: FunctionOf, nodes: Sequence[ir.Node], want: AffineType, types: TypeState
) -> Lowering | Refusal:
    """The function as two slopes, or as lines between knots."""
    source, unit = found.source, types.accumulator(found.source)
    assert unit is not None
    if source.shape is None:
        return Refusal(f"the rank of '{source.name}' is not known", "infer shapes first")
    residual = types.residuals.get(source)
    reach = types.reaches[source] * float(np.max(unit.scale))
    reach += 0.0 if residual is None else float(np.max(np.abs(residual)))
    slopes = _slopes(found, unit, reach, types)
    if slopes is not None:
        # Rounding is monotone: limits on real numbers are limits on their codes.
        low, high = (int(code) for code in want.quantize(np.asarray(slopes.limits, np.float32)))
        return Slopes(
            node=nodes[-1],
            reads=(source,),
            covered=covered_nodes(nodes),
            operand=Operand(unit, source),
            residual=residual,
            below=slopes.below,
            above=slopes.above,
            limits=(low, high),
            type=want,
        )
    if found.axis is not None:
        return Refusal("it is another function of an unrounded product in each channel")
    line = _Line(found, want, types)
    positive = _magnitudes(unit, reach)
    reached = np.concatenate([-positive[::-1], np.zeros(1), positive])
    if bool(np.any(np.isnan(line.codes(reached)))):
        return not_a_number(source)
    start, end = line.domain(reached)
    # A jump takes steps so small that no integer holds how many there are.
    spans = _spans(start, end, unit, want) if reach < _MOST_STEPS * (end - start) else ()
    for span in spans:
        knots = line.codes(span.points())
        if line.is_near(knots, span, reached):
            return Curve(
                node=nodes[-1],
                reads=(source,),
                covered=covered_nodes(nodes),
                operand=Operand(unit, source),
                residual=residual,
                start=span.start,
                step=span.step,
                knots=knots,
                bound=types.reaches[source],
                has_halves=span.has_halves,
                type=want,
            )
    return Refusal(f"'{source.name}' is not rounded, and lines between knots are too far off")


@dataclass(frozen=True)
class _Span:
    """Where knots lie.

    Attributes:
        start: The first of them.
        step: The distance between two.
        count: How many steps there are.
        has_halves: Whether what is straight between them may lie half-way between two codes.
    """

    start: float
    step: float
    count: int
    has_halves: bool

    def points(self) -> Array:
        """The real numbers at the knots (float64): [count + 1]."""
        return self.start + self.step * np.arange(self.count + 1)


def _spans(start: float, end: float, unit: AffineType, want: AffineType) -> Iterator[_Span]:
    """Spans from ``start`` to ``end``, the coarsest first.

    An accumulator whose unit is a binary fraction of a code holds halves, which straight parts
    keep: as those of Elu above 0 and of HardSwish above 3. Knots at binary fractions of a code
    make positions and lines binary fractions too, which fixed point holds exactly.
    """
    scale = float(want.scale)
    if _has_binary_units(unit, scale):
        for count in _KNOTS:
            step = scale * 2.0 ** math.ceil(math.log2((end - start) / count / scale))
            first, last = math.floor(start / step), math.ceil(end / step)
            yield _Span(first * step, step, last - first, has_halves=True)
    for count in _KNOTS:
        yield _Span(start, (end - start) / count, count, has_halves=False)


def _has_binary_units(unit: AffineType, scale: float) -> bool:
    """Whether units of the accumulator are whole multiples of 2^-n codes, in any channel."""
    parts = np.ldexp(unit.scale.astype(np.float64) / scale, _BINARY_BITS)
    return bool(np.any((parts == np.rint(parts)) & (parts > 0)))


@dataclass(frozen=True)
class _Slopes:
    """A function of one real number that is a factor on each side of 0, within limits.

    Attributes:
        below: The factor of negative numbers (float64), broadcastable to the source.
        above: The factor of positive numbers, likewise.
        limits: The smallest and the largest result.
    """

    below: Array
    above: Array
    limits: tuple[float, float]


def _slopes(found: FunctionOf, unit: AffineType, reach: float, types: TypeState) -> _Slopes | None:
    """The factors below and above 0, of a function that is no more; None where it is more."""
    assert found.source.shape is not None
    magnitudes = _magnitudes(unit, 2 * reach)  # the limits are beyond all that is reached
    least, most = (math.frexp(float(each))[1] for each in (magnitudes[0], magnitudes[-1]))
    # The result for a power of two, over that, is the factor itself.
    whole = [2.0**exponent for exponent in range(most - 1, least - 2, -1)]
    positive = np.concatenate([whole, magnitudes]).astype(np.float32)
    negative, zero = -positive, np.zeros(1, np.float32)
    reals = [results(found, x, types).astype(np.float64) for x in (negative, positive, zero)]
    limits = min(float(np.min(y)) for y in reals), max(float(np.max(y)) for y in reals)
    sides = [_factors(x, y, limits) for x, y in zip((negative, positive), reals[:2], strict=True)]
    # Where a side is at its limit, the other's factor leads there, or none does.
    below, above = (
        np.where(np.isnan(mine), theirs, mine) for mine, theirs in (sides, reversed(sides))
    )
    for x, y, factor in zip((negative, positive, zero), reals, (below, above, above), strict=True):
        line = np.clip(factor * x, *limits)
        if not np.all(np.abs(y - line) <= _SLOPE_ROUNDING * np.abs(line)):
            return None
    behind = 0 if found.axis is None else len(found.source.shape) - found.axis - 1
    shape = [] if found.axis is None else [-1] + [1] * behind
    return _Slopes(below.reshape(shape), above.reshape(shape), limits)


def _factors(x: Array, y: Array, limits: tuple[float, float]) -> Array:
    """The first quotient y / x, along the last axis, within the limits; NaN where there is none."""
    inside = (y > limits[0]) & (y < limits[1])
    first = np.argmax(inside, axis=-1, keepdims=True)
    quotients = np.take_along_axis(y / x, first, axis=-1)
    return np.where(np.take_along_axis(inside, first, axis=-1), quotients, np.nan)


def _magnitudes(unit: AffineType, reach: float) -> Array:
    """Positive numbers up to ``reach``, from far less than the accumulator's unit on.

    Dense at every magnitude: what bends between two limits may do so anywhere.
    """
    tiny = float(np.finfo(np.float32).tiny)
    most = max(reach, tiny)
    least = min(max(float(np.min(unit.scale)) / _PART_OF_UNIT, tiny), most)
    even = np.linspace(0.0, most, _MAGNITUDES + 1)[1:]
    return np.sort(np.concatenate([np.geomspace(least, most, _MAGNITUDES), even]))


def _unless_halfway(codes: Array) -> Array:
    """``codes``, rounded, but for halves: a little further on they round to either side."""
    return np.where(codes - np.floor(codes) == 0.5, codes, np.rint(codes))


class _Line:
    """A function of one real number, in codes of its result."""

    def __init__(self, found: FunctionOf, want: AffineType, types: TypeState) -> None:
        self._found = found
        self._types = types
        self._type = want

    def codes(self, x: Array) -> Array:
        """The result in codes (float64), not rounded, within the limits."""
        numbers = results(self._found, x.astype(np.float32), self._types).astype(np.float64)
        codes = numbers / float(self._type.scale) + float(self._type.zero_point)
        return np.clip(codes, *self._type.limits)

    def rounded(self, codes: Array) -> Array:
        """``codes``, rounded: halves so that the distance from the zero point is even."""
        zero = float(self._type.zero_point)
        nearest: Array = np.rint(codes - zero) + zero
        return nearest

    def domain(self, reached: Array) -> tuple[float, float]:
        """Where the result is not the code at one end of what is reached; wider than nothing."""
        x = reached
        start, end = float(x[0]), float(x[-1])
        for _ in range(_REFINEMENTS):
            codes = _unless_halfway(self.codes(x))
            (moving,) = np.nonzero((codes != codes[0]) & (codes != codes[-1]))
            (left,), (right,) = (np.nonzero(codes != codes[i]) for i in (0, -1))
            if not left.size or not right.size:
                return start, end
            first, last = max(left[0] - 1, 0), min(right[-1] + 1, len(x) - 1)
            if moving.size:
                first, last = min(first, moving[0]), max(last, moving[-1])
            if first == 0 and last == len(x) - 1:
                break
            start, end = float(x[first]), float(x[last])
            x = np.linspace(start, end, _KNOTS[-1] + 1)
        return start, end

    def is_near(self, knots: Array, span: _Span, reached: Array) -> bool:
        """Whether the lines are as good as the function, and what is ``reached`` beside is one."""
        at = span.points()
        start, end = float(at[0]), float(at[-1])
        inside = np.linspace(start, end, _POINTS)
        beside = reached[(reached < start) | (reached > end)]
        ends = self.rounded(np.interp(beside, at, knots))
        if np.any(ends != self.rounded(self.codes(beside))):
            return False
        error = np.abs(np.interp(inside, at, knots) - self.codes(inside))
        return float(np.mean(error)) <= _MEAN_ERROR and float(np.max(error)) <= _LARGEST_ERROR


RULES = {name: first_of(if_function, if_curve, no_function) for name in ELEMENTWISE}
"""Elementwise ops that have no better form."""
