"""Operands of integer ops: computed codes, and constants that codes hold exactly."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.fold.lowering import Operand
from onnxfold.passes.fold.types import TypeState, is_activation_type


def operand(value: ir.Value | None, types: TypeState) -> Operand | None:
    """``value`` as an operand of an integer kernel; None where it cannot be one."""
    known = types.get(value)
    if known is None or not is_activation_type(known.type):
        return None
    return Operand(known.type, None if known.codes is not None else value, known.codes)


def reads(*operands: Operand) -> tuple[ir.Value, ...]:
    """The values whose codes the operands need."""
    return tuple(each.value for each in operands if each.value is not None)


def exact_scalar(value: ir.Value | None) -> float | None:
    """The constant behind ``value`` if all its elements are equal and finite, else None."""
    array = constant_array(value)
    if array is None or array.size == 0 or array.dtype != np.float32:
        return None
    first = float(array.reshape(-1)[0])
    return first if np.isfinite(first) and bool(np.all(array == array.reshape(-1)[0])) else None


def uniform_operand(value: ir.Value | None) -> Operand | None:
    """A constant whose elements are all equal, as uint8 codes that stand for it exactly."""
    number = exact_scalar(value)
    array = constant_array(value)
    if number is None or array is None:
        return None
    # c = |c| * (1 - 0) where positive, |c| * (0 - 1) where negative, 1 * (0 - 0) for zero.
    scale = np.array(abs(number) or 1.0, np.float32)
    zero_point = np.array(1 if number < 0 else 0, np.uint8)
    codes: Array = np.full(array.shape, 1 if number > 0 else 0, np.uint8)
    return Operand(AffineType(scale, zero_point, ir.DataType.UINT8), None, codes)
