"""Clip on codes: how fake quantization to fewer codes than the type has is written down."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.fold.lowering import Alias, Clamp, Lowering
from onnxfold.passes.fold.types import Quantized, TypeState


def clip_codes(node: ir.Node, types: TypeState) -> Lowering | None:
    """A Clip between QuantizeLinear and DequantizeLinear; it disappears where it does nothing."""
    data = node.inputs[0]
    affine, bounds = types.activation(data), _bounds(node)
    if data is None or affine is None or bounds is None:
        return None
    low, high = types.bounds.get(data, affine.limits)
    lowest, highest = (
        limit if each is None else int(types.internal_codes(each, _dtype(each)))
        for each, limit in zip(bounds, affine.limits, strict=True)
    )
    clipped = min(max(low, lowest), highest), min(max(high, lowest), highest)
    output = node.outputs[0]
    types.put(output, Quantized(affine))
    types.bounds[output] = clipped
    if clipped == (low, high):
        return Alias(node=node, reads=(data,), covered=(node,))
    return Clamp(
        node=node, reads=(data,), covered=(node,), low=clipped[0], high=clipped[1], type=affine
    )


def clip_constant(node: ir.Node, types: TypeState) -> bool:
    """Record the codes of constant weights behind a Clip; whether there are any."""
    if node.op_type != "Clip" or node.domain or node.inputs[0] is None:
        return False
    bounds = _bounds(node)
    if bounds is None:
        return False
    source, output = node.inputs[0], node.outputs[0]
    known, numbers = types.get(source), constant_array(source)
    if known is not None and known.codes is not None:
        held = [
            None if each is None else types.internal_codes(each, _dtype(each)) for each in bounds
        ]
        types.put(output, Quantized(known.type, _clipped(known.codes, held)))
        return True
    numbers = types.moved.get(source) if numbers is None else numbers
    if numbers is None or numbers.dtype.kind not in "iu":
        return False
    types.moved[output] = _clipped(numbers, bounds)
    return True


def _bounds(node: ir.Node) -> list[Array | None] | None:
    """Lower and upper bound as scalars of an 8-bit type; None where they are anything else."""
    bounds: list[Array | None] = []
    for index in (1, 2):
        value = node.inputs[index] if index < len(node.inputs) else None
        array = constant_array(value)
        if value is not None and (array is None or array.size != 1 or array.dtype.itemsize > 1):
            return None
        bounds.append(None if array is None else array.reshape(()))
    return bounds


def _dtype(array: Array) -> ir.DataType:
    return ir.DataType.from_numpy(array.dtype)


def _clipped(codes: Array, bounds: list[Array | None]) -> Array:
    """As ONNX Runtime clips: the upper bound wins."""
    low, high = bounds
    codes = codes if low is None else np.maximum(codes, low)
    return codes if high is None else np.minimum(codes, high)
