"""Functions of int32 accumulators in integer ops of ai.onnx: lines between knots in fixed point.

The accumulator is rescaled to a position among the knots, with a fraction; what two tables hold for
the knot before it makes the line: offset + slope * position. Nanoseconds an element, 1x64x56x56 in
ONNX Runtime 1.32 on one thread: HardSwish or SiLU 7, two slopes 4, rescaling alone 2.5; a float
convolution, HardSwish and QuantizeLinear 1 ns more than QLinearConv, if there is a float unit.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import Array
from onnxfold.passes.fold.lowering import Curve, Slopes
from onnxfold.passes.fold.targets.builder import Builder
from onnxfold.passes.fold.targets.fixed_point import IntegerOps, Term, rescale
from onnxfold.passes.fold.targets.tables import entries

_INT64, _UINT64 = ir.DataType.INT64, ir.DataType.UINT64
_POSITION_BITS = 61  # of a position with its fraction: below 2^63 with what is added
_RAISED_BIT = 62  # what is added to a position, so that negative ones are numbers without a sign
_FRACTION_BITS = 16  # of a position that is multiplied with a slope
_MOST_FRACTION_BITS = 40
_RESULT_BITS = 16  # of a fraction of a code
_RESIDUAL_BITS = 10  # of a fraction of a unit of the accumulator


def write_slopes(lowering: Slopes, build: Builder) -> ir.Value:
    """One multiplier for what is negative and one for what is positive, where they differ."""
    output, unit, limits = lowering.node.outputs[0], lowering.operand.type, lowering.limits
    total = build.operand(lowering.operand, output.name or "product")
    scale = spread(unit.scale.astype(np.float64), unit, total)
    step, bound = scale / float(lowering.type.scale), np.iinfo(np.int32).max
    if np.array_equal(lowering.below, lowering.above):
        codes = None
        if lowering.residual is not None:
            codes = lowering.above * lowering.residual / float(lowering.type.scale)
        term = Term(total, np.asarray(lowering.above * step), 0, bound)
        return rescale([term], lowering.type, output, build, constant=codes, limits=limits)
    write = IntegerOps(build, output, output.shape)
    if lowering.residual is not None:
        offset = np.rint(np.ldexp(lowering.residual / scale, _RESIDUAL_BITS)).astype(np.int64)
        total = write.mul(write.cast(total, _INT64), np.asarray(1 << _RESIDUAL_BITS, np.int64))
        total = write.add(total, offset)
        bound = (bound << _RESIDUAL_BITS) + int(np.max(np.abs(offset)))
        step = np.ldexp(step, -_RESIDUAL_BITS)
    assert total.dtype is not None
    zero = build.constant(np.zeros((), total.dtype.numpy()), "zero")
    sides = zip(_signed_parts(total, zero, write), (lowering.below, lowering.above), strict=True)
    terms = [Term(part, np.asarray(slope * step), 0, bound) for part, slope in sides]
    return rescale(terms, lowering.type, output, build, limits=limits)


def _signed_parts(total: ir.Value, zero: ir.Value, write: IntegerOps) -> tuple[ir.Value, ir.Value]:
    """``total`` where it is negative and where it is positive, 0 elsewhere."""
    assert total.dtype is not None
    if total.dtype != _INT64:
        below, above = (write.op(each, [total, zero], total.dtype) for each in ("Min", "Max"))
        return below, above
    # Min and Max of int64 misread the low word's highest bit in ONNX Runtime 1.23.
    is_negative = write.op("Less", [total, zero], ir.DataType.BOOL)
    below = write.op("Mul", [total, write.cast(is_negative, _INT64)], _INT64)
    return below, write.op("Sub", [total, below], _INT64)


def write_curve(curve: Curve, build: Builder) -> ir.Value:
    """The line between the two knots around each number."""
    output, unit = curve.node.outputs[0], curve.operand.type
    total = build.operand(curve.operand, output.name or "product")
    write = IntegerOps(build, output, output.shape)
    count = len(curve.knots) - 1
    factor = spread(unit.scale.astype(np.float64), unit, total) / curve.step
    start = (0.0 if curve.residual is None else curve.residual) - curve.start
    offset = np.asarray(start / curve.step, np.float64)
    reach = curve.bound * float(np.max(factor)) + float(np.max(np.abs(offset))) + count
    bits = min(_MOST_FRACTION_BITS, _POSITION_BITS - math.ceil(math.log2(reach)))
    fraction = min(_FRACTION_BITS, bits)
    position = write.mul(write.cast(total, _INT64), _fixed(factor, bits))
    raised = 1 << _RAISED_BIT
    position = write.cast(write.add(position, _fixed(offset, bits) + raised), _UINT64)
    # Clip of int64 misreads the low word's highest bit in ONNX Runtime 1.23, that of uint64 not.
    position = write.clip(position, raised, raised + (count << bits) - 1)
    dropped = 64 - _RAISED_BIT
    fine = write.shift_right(write.shift_left(position, dropped), dropped + bits - fraction)
    knot = write.cast(write.shift_right(fine, fraction), _INT64)
    fine = write.cast(fine, _INT64)
    low = curve.type.limits[0]
    heights = _fixed(curve.knots - low, _RESULT_BITS)
    slopes = np.diff(heights)
    starts = (heights[:-1] << fraction) - slopes * (np.arange(count) << fraction)
    result_bits = _RESULT_BITS + fraction
    half = 0 if curve.has_halves else 1 << (result_bits - 1)
    first, slope = entries([starts + half, slopes], knot, _INT64, output, build)
    line = write.op("Mul", [slope, fine], _INT64)
    line = write.op("Add", [line, first], _INT64)
    if curve.has_halves:
        line = write.to_even(line, result_bits, 0, int(curve.type.zero_point) - low)
    codes = write.shift_right(line, result_bits)
    if low:
        codes = write.add(write.cast(codes, _INT64), np.asarray(low, np.int64))
    return write.cast(codes, curve.type.dtype)


def spread(numbers: Array, unit: AffineType, total: ir.Value) -> Array:
    """One number a channel of an accumulator, as it is broadcast with that; others as they are."""
    if unit.axis is None:
        return numbers
    assert total.shape is not None
    return numbers.reshape([-1] + [1] * (len(total.shape) - unit.axis - 1))


def _fixed(numbers: Array, bits: int) -> Array:
    return np.rint(np.ldexp(np.asarray(numbers, np.float64), bits)).astype(np.int64)
