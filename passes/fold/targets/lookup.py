"""Lookups in constant tables: codes are gathered, and only they become real numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.fold.lowering import Lookup
from onnxfold.passes.fold.targets.builder import Builder


def write_lookup(lookup: Lookup, build: Builder) -> ir.Value:
    """Gather on codes, then what DequantizeLinear computes, bit for bit.

    By Cast, Sub, Mul: scales may differ along the axis that is gathered, and ONNX Runtime misreads
    a DequantizeLinear with several scales of what is no constant.
    """
    output, affine, real = lookup.node.outputs[0], lookup.type, ir.DataType.FLOAT
    table = build.constant(np.ascontiguousarray(lookup.codes), f"{output.name}_codes")
    gathered = _gather(lookup, table, affine.dtype, output.shape, build)
    numbers = build.insert("Cast", [gathered], output, real, attributes={"to": int(real)})
    if not affine.symmetric:
        zeros = affine.zero_point.astype(np.float32)
        numbers = build.insert("Sub", [numbers, _parameter(lookup, zeros, build)], output, real)
    return build.insert("Mul", [numbers, _parameter(lookup, affine.scale, build)], output, real)


def _gather(
    lookup: Lookup,
    table: ir.Value,
    dtype: ir.DataType,
    shape: ir.Shape | None,
    build: Builder,
) -> ir.Value:
    return build.rewriter.insert(
        build.anchor,
        "Gather",
        [table, lookup.node.inputs[1]],
        name=f"{lookup.node.outputs[0].name}_gather",
        attributes={"axis": lookup.axis},
        dtype=dtype,
        shape=shape,
    )


def _parameter(lookup: Lookup, numbers: Array, build: Builder) -> ir.Value:
    """Scale or zero point as it broadcasts with what is gathered; gathered itself if need be."""
    channel, indices, rank = lookup.type.axis, lookup.node.inputs[1], lookup.codes.ndim
    assert indices is not None
    name = f"{lookup.node.outputs[0].name}_parameter"
    if channel is None:
        return build.constant(numbers, name)
    if channel == lookup.axis:
        column = numbers.reshape([-1 if axis == channel else 1 for axis in range(rank)])
        ones = [1] * (rank - 1 - channel)
        shape = indices.shape and ir.Shape([*[1] * channel, *indices.shape, *ones])
        return _gather(lookup, build.constant(column, name), ir.DataType.FLOAT, shape, build)
    behind = rank - 1 - channel
    if channel < lookup.axis:
        assert indices.shape is not None
        behind += len(indices.shape) - 1
    return build.constant(numbers.reshape([-1, *[1] * behind]), name)
