"""The codes of a linear operator's weights in a Q/DQ graph, as rows to round anew."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import INTEGER_LIMITS
from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.quantize.rounding import Grid
from onnxfold.passes.quantize.weight_rows import WeightRows


@dataclass(frozen=True, eq=False)
class WeightCodes:
    """Constant codes behind a DequantizeLinear with constant parameters.

    Attributes:
        dequantize: The DequantizeLinear.
        stored: The codes, as stored.
        rows: How they lie.
        grid: What they stand for. Codes beyond the largest that is there are not used: whoever
            chose these may want them free (-128, or room for sums of 16 bits).
    """

    dequantize: ir.Node
    stored: Array
    rows: WeightRows
    grid: Grid

    @classmethod
    def match(cls, node: ir.Node) -> WeightCodes | None:
        """Describe the weights of Conv, Gemm or MatMul; None where they are anything else."""
        value = node.inputs[1] if len(node.inputs) > 1 else None
        source = None if value is None else value.producer()
        if source is None or source.op_type != "DequantizeLinear" or source.domain:
            return None
        stored, scale = constant_array(source.inputs[0]), constant_array(source.inputs[1])
        absent = len(source.inputs) < 3 or source.inputs[2] is None
        zero = np.zeros(()) if absent else constant_array(source.inputs[2])
        if stored is None or scale is None or zero is None or not stored.size:
            return None
        rows = WeightRows.match(node, stored.shape)
        scales, zeros = (_spread(each, source, stored.shape) for each in (scale, zero))
        if rows is None or scales is None or zeros is None:
            return None
        low, high = _span(stored, zeros)
        grid = Grid(_row_array(rows, scales), _row_array(rows, zeros), low, high)
        return cls(source, stored, rows, grid)

    @property
    def codes(self) -> Array:
        """float64 [groups, outputs, inputs]."""
        return _row_array(self.rows, self.stored)

    def store(self, codes: Array) -> Array:
        """Codes [groups, outputs, inputs] as they are stored."""
        return self.rows.from_rows(codes).astype(self.stored.dtype)


def _row_array(rows: WeightRows, stored: Array) -> Array:
    return np.ascontiguousarray(rows.to_rows(stored.astype(np.float64)))


def _span(stored: Array, zeros: Array) -> tuple[float, float]:
    """The smallest and the largest code that may be used."""
    codes = stored.astype(np.float64)
    if np.any(zeros):
        return float(codes.min()), float(codes.max())
    largest = float(np.abs(codes).max())
    lowest, highest = INTEGER_LIMITS[ir.DataType.from_numpy(stored.dtype)]
    return max(-largest, lowest), min(largest, highest)


def _spread(parameter: Array, source: ir.Node, shape: tuple[int, ...]) -> Array | None:
    """A scale or zero point for each code; None where it does not fit."""
    wide = parameter.astype(np.float64)
    if wide.size == 1:
        return np.broadcast_to(wide.reshape(()), shape)
    axis = source.attributes.get_int("axis", 1)
    if not -len(shape) <= axis < len(shape):
        return None
    axis %= len(shape)
    block = source.attributes.get_int("block_size", 0)
    if block:
        spread: Array = np.repeat(wide, block, axis=axis)
        spread = np.take(spread, np.arange(min(shape[axis], spread.shape[axis])), axis=axis)
        return spread if spread.shape == shape else None
    if wide.ndim != 1 or wide.size != shape[axis]:
        return None
    full = [1] * len(shape)
    full[axis] = -1
    return np.broadcast_to(wide.reshape(full), shape)
