"""Rescaling of integers by real factors, in integer ops of ai.onnx only.

sum of m_i (v_i - z_i) + c, rounded half to even and saturated, as one int64 numerator over 2^n:
Jacob et al., "Quantization and Training of Neural Networks" (2018), section 2.2, with more bits
and without its bias: the numerator is kept positive, so that the shift rounds negatives rightly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

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
_LARGEST_DENOMINATOR = 2**20
_FRACTION_PRECISION = 2**50  # a float64 factor, two operations behind float32 scales
_MOST_OFF = 2.0**-10  # of a code, by which a factor may be off its real number


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
    limits: tuple[int, int] | None = None,
) -> ir.Value:
    """The sum of ``terms``, rounded to codes of ``affine``.

    Args:
        terms: At least one.
        affine: Per tensor; its scale is not used again, factors are in its codes.
        like: What the result is shaped like and named after.
        build: Where it is written.
        constant: What is added besides, in codes (float64); broadcastable to the result.
        shape: The shape of the result where it differs from that of ``like``.
        limits: The smallest and the largest code, where they are not those of ``affine``.
    """
    low, high = affine.limits if limits is None else limits
    zero = int(affine.zero_point)
    largest = sum(float(np.max(np.abs(term.factor))) * term.bound for term in terms)
    largest += 0.0 if constant is None else float(np.max(np.abs(constant), initial=0.0))
    headroom = _headroom(largest, affine)
    bits = min(_MOST_BITS, _NUMERATOR_BITS - headroom.bit_length())
    factors = [_integers(term.factor, bits) for term in terms]
    added = np.zeros((), np.int64) if constant is None else _integers(constant, bits)
    for term, factor in zip(terms, factors, strict=True):
        added = added - factor * term.zero
    # Congruent to the zero point modulo 2^8 or 2^16: the last Cast, which wraps, removes the rest.
    base = headroom + zero
    added = added + (base << bits)
    half = 1 << (bits - 1)
    write = IntegerOps(build, like, like.shape if shape is None else shape)
    span = high - low + (0.0 if constant is None else float(np.max(np.abs(constant), initial=0.0)))
    scaled = [
        _scaled(term, factor, bits, span, like, build)
        for term, factor in zip(terms, factors, strict=True)
    ]
    total = scaled[0]
    for each in scaled[1:]:
        partial = IntegerOps(build, like, _broadcast(total.shape, each.shape))
        total = partial.op("Add", [total, each], _INT64)
    width = _tie_width(terms, factors, bits)
    if width is None and _ties_together(terms, constant, bits):
        width = 0
    if width is not None:
        total = write.to_even(write.add(total, added), bits, width, zero)
    else:
        total = write.add(total, added + half)
    codes = write.clip(write.shift_right(total, bits), headroom + low, headroom + high)
    return write.cast(codes, affine.dtype)


def quotient(
    value: ir.Value,
    factor: Fraction,
    bound: int,
    affine: AffineType,
    like: ir.Value,
    build: Builder,
) -> ir.Value:
    """``value`` times ``factor``, rounded half to even to codes of ``affine``: by two divisions.

    It is slower than ``rescale``, which takes halves of large denominators for what is near them.

    Args:
        value: int64.
        factor: In codes of the result.
        bound: Largest magnitude of ``value``; times the terms of ``factor``, below 2^61.
        affine: Per tensor, of 8 bits.
        like: What the result is shaped like and named after.
        build: Where it is written.
    """
    low, high = affine.limits
    zero, parts = int(affine.zero_point), factor.denominator
    headroom = _headroom(float(factor * bound), affine)
    write = IntegerOps(build, like, like.shape)
    numerator = write.mul(value, np.asarray(factor.numerator, np.int64))
    position = write.add(numerator, np.asarray((headroom + zero) * parts, np.int64))
    odd = write.odd(write.divide(position, parts), 0, 0)
    # Over 2 parts, up from the half where the code below is odd, zero point left out.
    doubled = write.mul(position, np.asarray(2, np.int64))
    doubled = write.op("Add" if zero % 2 == 0 else "Sub", [doubled, odd], _INT64)
    total = write.add(doubled, np.asarray(parts - 1 + zero % 2, np.int64))
    codes = write.cast(write.divide(total, 2 * parts), _UINT64)
    return write.cast(write.clip(codes, headroom + low, headroom + high), affine.dtype)


def _headroom(largest: float, affine: AffineType) -> int:
    """What is added to codes, a multiple of how many there are, so that none is negative."""
    codes = 1 << affine.dtype.bitwidth
    return codes * math.ceil((max(largest, 1.0) + 1) / codes + 1)


def _scaled(
    term: Term, factor: Array, bits: int, span: float, like: ir.Value, build: Builder
) -> ir.Value:
    """``term`` in int64, times 2^bits; it may be smaller than what it is added to.

    Where the integer ``factor`` is too coarse for how large v is, what it leaves out is added as
    (v / 2^k) times a second one. Of v only what does not leave the ``span`` of the codes counts.
    """
    alike = IntegerOps(build, like, term.value.shape)
    wide = alike.cast(term.value, _INT64)
    write = IntegerOps(build, like, _broadcast(term.value.shape, ir.Shape(factor.shape)))
    scaled = write.mul(wide, factor)
    smallest = float(np.min(np.abs(term.factor), where=term.factor != 0, initial=np.inf))
    counted = min(term.bound, span / smallest)
    if term.zero or math.ldexp(counted, -bits - 1) <= _MOST_OFF:
        return scaled
    dropped, raised = int(counted).bit_length() // 2, 1 << term.bound.bit_length()
    rest = _integers(np.ldexp(term.factor, bits) - factor, dropped)
    upper = alike.shift_right(alike.add(wide, np.asarray(raised, np.int64)), dropped)
    upper = alike.add(alike.cast(upper, _INT64), np.asarray(-(raised >> dropped), np.int64))
    return write.op("Add", [scaled, write.mul(upper, rest)], _INT64)


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

    def divide(self, value: ir.Value, divisor: int) -> ir.Value:
        """Non-negative ``value`` (int64) over a constant, rounded down."""
        constant = self.build.constant(np.asarray(divisor, np.int64), "divisor")
        return self.op("Div", [value, constant], _INT64)

    def odd(self, total: ir.Value, bits: int, width: int) -> ir.Value:
        """2^width where non-negative int64 ``total`` over 2^bits, rounded down, is odd; else 0."""
        if self.build.rewriter.opset(self.build.anchor) >= _BITWISE_AND:
            bit = self.build.constant(np.asarray(1 << width, np.int64), "odd_bit")
            shifted = self.cast(self.shift_right(total, bits - width), _INT64)
            return self.op("BitwiseAnd", [shifted, bit], _INT64)
        two = self.build.constant(np.asarray(2, np.int64), "two")
        code = self.cast(self.shift_right(total, bits), _INT64)
        odd = self.op("Mod", [code, two], _INT64)
        return odd if width == 0 else self.mul(odd, np.asarray(1 << width, np.int64))

    def to_even(self, total: ir.Value, bits: int, width: int, zero: int) -> ir.Value:
        """Non-negative int64 ``total`` plus what rounds it half to even once 2^bits divides it.

        Args:
            total: Codes times 2^bits.
            bits: How many bits of it are a fraction.
            width: The log2 of how wide a half is; 0 where halves are exact.
            zero: The zero point: what is even is the distance from it.
        """
        odd = self.odd(total, bits, width)
        # Up from the half where the code below is odd, zero point left out.
        total = self.op("Add" if zero % 2 == 0 else "Sub", [total, odd], _INT64)
        below = (1 << (bits - 1)) - 1 - ((1 << width) >> 1)
        return self.add(total, np.asarray(below + (zero % 2 << width), np.int64))

    def shift_right(self, value: ir.Value, bits: int) -> ir.Value:
        """Non-negative int64 ``value`` over 2^bits, rounded down, as uint64."""
        amount = self.build.constant(np.asarray(bits, np.uint64), "shift")
        inputs = [self.cast(value, _UINT64), amount]
        return self.op("BitShift", inputs, _UINT64, {"direction": "RIGHT"})

    def shift_left(self, value: ir.Value, bits: int) -> ir.Value:
        """``value`` (uint64) times 2^bits, modulo 2^64."""
        amount = self.build.constant(np.asarray(bits, np.uint64), "shift")
        return self.op("BitShift", [value, amount], _UINT64, {"direction": "LEFT"})

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


def _ties_together(terms: Sequence[Term], constant: Array | None, bits: int) -> bool:
    """Whether terms that never lie midway between two codes alone may do so together.

    As 1.3 a - 0.3 b does where a is b: only where fixed point holds all the factors exactly.
    """
    numbers = [np.asarray(np.ldexp(term.factor, bits)).reshape(-1) for term in terms]
    if any(bool(np.any(each != np.rint(each))) for each in numbers):
        return False
    if constant is None or not np.any(constant):
        return len(terms) > 1
    added = np.ldexp(constant, bits).reshape(-1)
    odd = np.concatenate(numbers).astype(np.int64)
    finest = np.min(odd & -odd, where=odd != 0, initial=1 << (bits - 1))
    return bool(np.any(np.mod(added, float(finest)) == 0))


def _tie_width(terms: Sequence[Term], factors: Sequence[Array], bits: int) -> int | None:
    """The log2 of how wide a half is; None where no term lies midway between two codes.

    0 where only terms do that the fixed-point factors hold exactly. A mean of six does as well,
    though no binary fraction is a sixth: all that is as near as the factors are off is a half.
    """
    exact = any(_can_tie(f, t.bound, bits) for f, t in zip(factors, terms, strict=True))
    found = [
        _denominator(float(factor), term.bound)
        for term in terms
        for factor in np.unique(np.abs(term.factor))
    ]
    off = sum(term.bound for term in terms) // 2 + 2
    width = off.bit_length() + 1
    common = math.lcm(*(each for each in found if each))
    inexact = any(each % 2 == 0 and each & (each - 1) for each in found if each)
    if inexact and common << (width + 2) < 1 << bits:  # what is no half is 1 / (2 common) away
        return width
    return 0 if exact else None


@lru_cache(maxsize=4096)
def _denominator(factor: float, bound: int) -> int | None:
    """That of the fraction that ``factor`` is, where integers up to ``bound`` lead to its halves.

    A quotient of float32 scales is no fraction with a small denominator by chance.
    """
    near = Fraction(factor).limit_denominator(min(2 * bound + 1, _LARGEST_DENOMINATOR))
    is_near = abs(near - Fraction(factor)) <= Fraction(factor) / _FRACTION_PRECISION
    return near.denominator if is_near else None
