"""16-bit codes for kernels of 8 bits: q = 256 h + l, one product for each half.

What a kernel pads with, the zero point, has halves as well: each is the zero point of its half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.fold.lowering import (
    Curve,
    Lowering,
    Refusal,
    Softmax,
)
from onnxfold.passes.fold.targets.builder import Builder
from onnxfold.passes.fold.targets.fixed_point import IntegerOps
from onnxfold.passes.fold.types import is_wide

_INT32, _INT64 = ir.DataType.INT32, ir.DataType.INT64
_UINT8, _UINT32 = ir.DataType.UINT8, ir.DataType.UINT32
_INT32_LIMIT = 2**31 - 1
_HALF = 256
_RAISE = 2**15  # int16 codes + 2^15 are uint16 codes of the same real numbers
_NO_FORM = "it has no integer form for codes of 16 bits"

_NARROW = (Curve, Softmax)
"""What is written down for codes of 8 bits only."""


def decline_wide(lowering: Lowering) -> Refusal | None:
    """Why ``lowering`` is not done on codes of 16 bits; None where it is, or has none."""
    if not isinstance(lowering, _NARROW):
        return None
    if not (is_wide(lowering.operand.type) or is_wide(lowering.type)):
        return None
    return Refusal(_NO_FORM, "quantize what it reads and what it writes to 8 bits")


@dataclass(frozen=True, eq=False)
class Part:
    """8-bit codes that stand for a part of an operand.

    Attributes:
        codes: They themselves.
        zero_point: Their zero point, a constant.
        unit: What one of them counts in codes of the operand: 256 or 1.
    """

    codes: ir.Value
    zero_point: ir.Value
    unit: int = 1


def parts_of(codes: ir.Value, affine: AffineType, like: ir.Value, build: Builder) -> list[Part]:
    """The halves of 16-bit codes, both uint8; codes of 8 bits as they are.

    Args:
        codes: Codes of ``affine``.
        affine: Per tensor.
        like: What the halves are named after.
        build: Where they are written.
    """
    if not is_wide(affine):
        return [Part(codes, build.zero_point(affine))]
    key = (build.anchor.graph, codes)
    if key not in build.halves:
        build.halves[key] = _halves(codes, affine, like, build)
    zero = int(affine.zero_point) + (_RAISE if affine.dtype == ir.DataType.INT16 else 0)
    return [
        Part(half, build.constant(np.array(part, np.uint8), "zero_point"), unit)
        for half, part, unit in zip(build.halves[key], divmod(zero, _HALF), (_HALF, 1), strict=True)
    ]


def _halves(
    codes: ir.Value, affine: AffineType, like: ir.Value, build: Builder
) -> tuple[ir.Value, ir.Value]:
    write = IntegerOps(build, like, codes.shape)
    wide = codes
    if affine.dtype == ir.DataType.INT16:
        raised = build.constant(np.array(_RAISE, np.int32), "recoding_shift")
        wide = write.op("Add", [write.cast(codes, _INT32), raised], _INT32)
    amount = build.constant(np.array(8, np.uint32), "shift")
    inputs = [write.cast(wide, _UINT32), amount]
    high = write.op("BitShift", inputs, _UINT32, {"direction": "RIGHT"})
    # A Cast to fewer bits keeps the lowest.
    return write.cast(high, _UINT8), write.cast(codes, _UINT8)


def combined(
    sums: Sequence[tuple[int, ir.Value]], bound: int, like: ir.Value, build: Builder
) -> ir.Value:
    """The int32 ``sums`` of parts, each times its unit, together.

    Args:
        sums: Unit and value of each.
        bound: The largest magnitude of the result: int32 where that holds it, else int64.
        like: What it is shaped like and named after.
        build: Where it is written.
    """
    dtype = _INT32 if bound <= _INT32_LIMIT else _INT64
    write = IntegerOps(build, like, like.shape)
    total: ir.Value | None = None
    for unit, value in sums:
        each = value if len(sums) == 1 else write.cast(value, dtype)
        if unit != 1:
            factor = build.constant(np.array(unit, dtype.numpy()), "unit")
            each = write.op("Mul", [each, factor], dtype)
        total = each if total is None else write.op("Add", [total, each], dtype)
    assert total is not None
    return total
