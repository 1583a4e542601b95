"""Operands of integer ops: computed codes, and constants that codes hold exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.fold.lowering import Operand
from onnxfold.passes.fold.types import TypeState


def operand(value: ir.Value | None, types: TypeState) -> Operand | None:
    """``value`` as an operand of an integer kernel; None where it cannot be one."""
    known = types.get(value)
    if known is None or not types.takes(known.type):
        return None
    return Operand(known.type, None if known.codes is not None else value, known.codes)


def reads(*operands: Operand) -> tuple[ir.Value, ...]:
    """The values whose codes the operands need."""
    return tuple(each.value for each in operands if each.value is not None)


def reals(*operands: Operand) -> tuple[ir.Value, ...]:
    """The real values that the operands quantize."""
    return tuple(each.real for each in operands if each.real is not None)


def has_computed_codes(value: ir.Value | None, types: TypeState) -> bool:
    """Whether ``value`` has codes that integer kernels take and that are not constant."""
    known = types.get(value)
    return known is not None and known.codes is None and types.takes(known.type)


def real_constant(value: ir.Value | None, types: TypeState) -> Array | None:
    """The real constant behind ``value``, dequantized or as it is; None where it is not one."""
    known = types.get(value)
    if known is not None and known.codes is not None:
        return known.type.dequantize(known.codes)
    array = constant_array(value)
    if array is None and value is not None:
        array = types.moved.get(value)
    return None if array is None or array.dtype.kind != "f" else array


def exact_scalar(value: ir.Value | None) -> float | None:
    """The constant behind ``value`` if all its elements are equal and finite, else None."""
    array = constant_array(value)
    if array is None or array.size == 0 or array.dtype != np.float32:
        return None
    first = float(array.reshape(-1)[0])
    return first if np.isfinite(first) and bool(np.all(array == array.reshape(-1)[0])) else None


def uniform_operand(value: ir.Value | None, sign: float = 1.0) -> Operand | None:
    """``sign`` times a constant of equal elements, as uint8 codes that stand for it exactly."""
    number = exact_scalar(value)
    array = constant_array(value)
    if number is None or array is None:
        return None
    return exact_operand(sign * number, array.shape)


def exact_operand(number: float, shape: tuple[int, ...] = ()) -> Operand:
    """A constant filled with ``number``, as uint8 codes that stand for it exactly."""
    # c = |c| * (1 - 0) where positive, |c| * (0 - 1) where negative, 1 * (0 - 0) for zero.
    scale = np.array(abs(number) or 1.0, np.float32)
    zero_point = np.array(1 if number < 0 else 0, np.uint8)
    codes: Array = np.full(shape, 1 if number > 0 else 0, np.uint8)
    return Operand(AffineType(scale, zero_point, ir.DataType.UINT8), None, codes)


def joined_operands(
    values: Sequence[ir.Value | None], output: ir.Value, types: TypeState
) -> tuple[tuple[Operand, ...], AffineType] | ir.Value | None:
    """Operands of an op that picks its result from several, and the type of that result.

    It is the type all readers round the result to, real operands and constants being quantized
    to it; without one, that of all computed operands, of which constants must be codes.

    Returns:
        Operands and type; the first value without codes; or None where the types differ.
    """
    want = types.want(output)
    found = [operand(value, types) for value in values]
    computed = [each.type for each in found if each is not None and each.value is not None]
    joined = want or (computed[0] if computed else None)
    if joined is None or (want is None and any(each is not joined for each in computed)):
        return None
    operands: list[Operand] = []
    for value, each in zip(values, found, strict=True):
        if each is not None and (want is not None or each.type is joined):
            operands.append(each)
            continue
        other = _in_type(value, joined, types, rounded=want is not None)
        if other is None:
            return value
        operands.append(other)
    return tuple(operands), joined


def _in_type(
    value: ir.Value | None, affine: AffineType, types: TypeState, *, rounded: bool
) -> Operand | None:
    """A constant, or where the result is rounded any real value, as codes of ``affine``."""
    constant = real_constant(value, types)
    if constant is None:
        return Operand(affine, real=value) if rounded and value is not None else None
    codes = affine.quantize(constant)
    if constant.dtype != np.float32 or bool(np.any(np.isnan(constant))):
        return None
    exact = rounded or np.array_equal(affine.dequantize(codes), constant)
    return Operand(affine, codes=codes) if exact else None
