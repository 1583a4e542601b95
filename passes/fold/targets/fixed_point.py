"""Rescaling of integers by real factors, in integer ops of ai.onnx only.

sum of m_i (v_i - z_i) + c, rounded half to even and saturated, as one int64 numerator over 2^n:
Jacob et al., "Quantization and Training of Neural Networks" (2018), section 2.2, with more bits
and without its bias: the numerator is kept positive, so that the shift rounds negatives rightly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import Array
from onnxfold.passes.fold.targets.builder import Builder
from onnxfold.passes.literals import AttributeValue

_INT64, _UINT64 = ir.DataType.INT64, ir.DataType.UINT64
_NUMERATOR_BITS = 61  # the product, its offset and the half together stay below 2^63
_MOST_BITS = 52  # more of a float64 factor are zeros
_BITWISE_AND = 18  # the first opset that has it; Mod is ten times slower
_CODES = 256  # between the smallest and the largest result


@dataclass(frozen=True, eq=False)
class Term:
    """One term m (v - z) of a sum.

    Attributes:
        value: The integers v, of any integer type.
        factor: m in codes of the result (float64): a scalar, or broadcastable to the result.
        zero: z, the integer that stands for 0.
        bound: Largest |v - z| that occurs.
    """

    value: ir.Value
    factor: Array
    zero: int
    bound: int


def rescale(
    terms: Sequence[Term],
    affine: AffineType,
    like: ir.Value,
    build: Builder,
    *,
    constant: Array | None = None,
    shape: ir.Shape | None = None,
) -> ir.Value:
    """The sum of ``terms``, rounded to codes of ``affine``.

    Args:
        terms: At least one.
        affine: Per tensor, of 8 bits; its scale is not used again, factors are in its codes.
        like: What the result is shaped like and named after.
        build: Where it is written.
        constant: What is added besides, in codes (float64); broadcastable to the result.
        shape: The shape of the result where it differs from that of ``like``.
    """
    low, high = affine.limits
    zero = int(affine.zero_point)
    largest = sum(float(np.max(np.abs(term.factor))) * term.bound for term in terms)
    largest += 0.0 if constant is None else float(np.max(np.abs(constant), initial=0.0))
    headroom = _CODES * math.ceil((max(largest, 1.0) + 1) / _CODES + 1)
    bits = min(_MOST_BITS, _NUMERATOR_BITS - headroom.bit_length())
    factors = [_integers(term.factor, bits) for term in terms]
    added = np.zeros((), np.int64) if constant is None else _integers(constant, bits)
    for term, factor in zip(terms, factors, strict=True):
        added = added - factor * term.zero
    # Congruent to the zero point modulo 256, so that the last Cast, which wraps, removes the rest.
    base = headroom + zero
    added = added + (base << bits)
    half = 1 << (bits - 1)
    write = IntegerOps(build, like, like.shape if shape is None else shape)
    scaled = [
        _scaled(term.value, factor, like, build)
        for term, factor in zip(terms, factors, strict=True)
    ]
    total = scaled[0]
    for each in scaled[1:]:
        partial = IntegerOps(build, like, _broadcast(total.shape, each.shape))
        total = partial.op("Add", [total, each], _INT64)
    if any(_can_tie(f, t.bound, bits) for f, t in zip(factors, terms, strict=True)):
        total = write.add(total, added)
        odd = write.odd(write.shift_right(total, bits))
        # Half to even: up from the half where the code below is odd, zero point left out.
        nudged = "Add" if zero % 2 == 0 else "Sub"
        total = write.op(nudged, [total, odd], _INT64)
        total = write.add(total, np.asarray(half - 1 + zero % 2, np.int64))
    else:
        total = write.add(total, added + half)
    codes = write.clip(write.shift_right(total, bits), headroom + low, headroom + high)
    return write.cast(codes, affine.dtype)


def _scaled(value: ir.Value, factor: Array, like: ir.Value, build: Builder) -> ir.Value:
    """``value`` times ``factor`` in int64; it may be smaller than what it is added to."""
    wide = IntegerOps(build, like, value.shape).cast(value, _INT64)
    shape = _broadcast(value.shape, ir.Shape(factor.shape))
    return IntegerOps(build, like, shape).mul(wide, factor)


def _broadcast(first: ir.Shape | None, second: ir.Shape | None) -> ir.Shape | None:
    """The shape of a sum; None where it is not known."""
    if first is None or second is None:
        return None
    rank = max(len(first), len(second))
    padded = [(1,) * (rank - len(each)) + tuple(each) for each in (first, second)]
    return ir.Shape([_size(one, other) for one, other in zip(*padded, strict=True)])


def _size(first: int | ir.SymbolicDim, second: int | ir.SymbolicDim) -> int | ir.SymbolicDim | None:
    if first == 1 or first == second:
        return second
    if second == 1 or isinstance(first, int):
        return first
    return second if isinstance(second, int) else None


def centred(codes: ir.Value, affine: AffineType, like: ir.Value, build: Builder) -> ir.Value:
    """The distance of ``codes`` from their zero point, in int32."""
    write = IntegerOps(build, like, codes.shape)
    wide = write.cast(codes, ir.DataType.INT32)
    if affine.symmetric:
        return wide
    zero = build.constant(affine.zero_point.astype(np.int32), "zero_point_wide")
    return write.op("Sub", [wide, zero], ir.DataType.INT32)


class IntegerOps:
    """Inserts integer ops whose results are all shaped alike.

    Attributes:
        build: Where they are written.
        like: What they are named after.
        shape: Their shape.
    """

    def __init__(self, build: Builder, like: ir.Value, shape: ir.Shape | None) -> None:
        self.build = build
        self.like = like
        self.shape = shape

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        dtype: ir.DataType,
        attributes: dict[str, AttributeValue] | None = None,
    ) -> ir.Value:
        """Any op with one output."""
        return self.build.insert(
            op_type, inputs, self.like, dtype, attributes=attributes, shape=self.shape
        )

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """``value`` as ``dtype``."""
        if value.dtype == dtype:
            return value
        return self.op("Cast", [value], dtype, {"to": int(dtype)})

    def mul(self, value: ir.Value, factor: Array) -> ir.Value:
        """``value`` (int64) times constants."""
        return self.op("Mul", [value, self.build.constant(factor, "multiplier")], _INT64)

    def add(self, value: ir.Value, addend: Array) -> ir.Value:
        """``value`` (int64) plus constants."""
        return self.op("Add", [value, self.build.constant(addend, "offset")], _INT64)

    def odd(self, value: ir.Value) -> ir.Value:
        """1 where ``value`` is odd, as int64."""
        if self.build.rewriter.opset(self.build.anchor) >= _BITWISE_AND:
            one = self.build.constant(np.asarray(1, np.int64), "one")
            return self.op("BitwiseAnd", [self.cast(value, _INT64), one], _INT64)
        two = self.build.constant(np.asarray(2, np.int64), "two")
        return self.op("Mod", [self.cast(value, _INT64), two], _INT64)

    def shift_right(self, value: ir.Value, bits: int) -> ir.Value:
        """Non-negative int64 ``value`` over 2^bits, rounded down, as uint64."""
        amount = self.build.constant(np.asarray(bits, np.uint64), "shift")
        inputs = [self.cast(value, _UINT64), amount]
        return self.op("BitShift", inputs, _UINT64, {"direction": "RIGHT"})

    def clip(self, value: ir.Value, low: int, high: int) -> ir.Value:
        """``value`` (uint64) within limits."""
        limits = [
            self.build.constant(np.asarray(limit, np.uint64), "code_limit") for limit in (low, high)
        ]
        return self.op("Clip", [value, *limits], _UINT64)


def _integers(real: Array, bits: int) -> Array:
    """``real`` times 2^bits, rounded."""
    return np.rint(np.ldexp(np.asarray(real, np.float64), bits)).astype(np.int64)


def _can_tie(factor: Array, bound: int, bits: int) -> bool:
    """Whether an integer up to ``bound`` times a factor can lie midway between two codes."""
    found = np.abs(factor.reshape(-1))
    found = found[found != 0]
    lowest_bit = found & -found
    return bool(np.any((1 << (bits - 1)) // lowest_bit <= bound))
