"""Lookups in constant tables: rows are looked up as codes, and only they are dequantized."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.fold.lowering import Lookup, Lowering, Move, Refusal
from onnxfold.passes.fold.rules.movement import move
from onnxfold.passes.fold.rules.operands import real_constant
from onnxfold.passes.fold.rules.refusals import touches_quantization
from onnxfold.passes.fold.types import Quantized, TypeState

_MIDDLE = 128


def select(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """An op that selects elements, of a table perhaps."""
    if not touches_quantization(node, types):
        return None
    known = types.get(node.inputs[0])
    want = types.want(node.outputs[0])
    if want is not None and (known is None or known.type is not want):
        table = _rounded_table(node, types)
        if table is not None:
            return table
    if known is not None and known.codes is not None and not types.takes(known.type):
        lookup = _lookup(node, known)
        if lookup is not None:
            return lookup
    return move(node, types)


def _rounded_table(node: ir.Node, types: TypeState) -> Move | None:
    """The op on a table rounded ahead of time to what all readers of the result ask for."""
    want, real = types.want(node.outputs[0]), real_constant(node.inputs[0], types)
    if want is None or real is None or real.dtype != np.float32 or bool(np.any(np.isnan(real))):
        return None
    types.put(node.outputs[0], Quantized(want))
    indices = tuple(value for value in node.inputs[1:] if value is not None)
    constants = {0: want.quantize(real)}
    return Move(
        node=node, plain=indices, covered=(node,), positions=(), constants=constants, rounds=True
    )


def _lookup(node: ir.Node, known: Quantized) -> Lookup | None:
    """Gather from a table with one scale a channel; None where the scale cannot follow."""
    indices, codes = node.inputs[1] if len(node.inputs) > 1 else None, known.codes
    if node.op_type != "Gather" or codes is None or codes.dtype.itemsize != 1 or indices is None:
        return None
    axis = node.attributes.get_int("axis", 0) % codes.ndim
    before = known.type.axis is not None and known.type.axis < axis
    if before and indices.shape is None:
        return None
    affine = known.type
    if affine.dtype == ir.DataType.UINT8 and bool(np.all(affine.zero_point == _MIDDLE)):
        # As int8 there is no zero point to subtract.
        codes = (codes.astype(np.int16) - _MIDDLE).astype(np.int8)
        zeros = np.zeros(affine.scale.shape, np.int8)
        affine = AffineType(affine.scale, zeros, ir.DataType.INT8, affine.axis)
    return Lookup(node=node, plain=(indices,), covered=(node,), codes=codes, type=affine, axis=axis)


RULES = {
    "Gather": select,
    "GatherElements": select,
    "GatherND": select,
    "Slice": select,
}
