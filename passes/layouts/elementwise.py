"""Elementwise operators, quantization and what else computes each element by itself."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.layouts.carry import (
    Carry,
    Handler,
    Known,
    data_operand,
    int_attribute,
    rank_of,
    remapped,
)
from onnxfold.passes.layouts.permutation import Permutation, identity
from onnxfold.passes.shapes import static_shape

_ROUNDED_ONCE = (
    *("Abs", "Add", "And", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "Ceil"),
    *("Div", "Equal", "Floor", "Greater", "GreaterOrEqual", "Identity", "IsInf", "IsNaN"),
    *("LeakyRelu", "Less", "LessOrEqual", "Mul", "Neg", "Not", "Or", "PRelu", "Round", "Sign"),
    *("Sub", "Where", "Xor"),
)
"""IEEE 754 leaves them one result, whichever vector an element comes to lie in."""

_SIGNS_OF_ZERO = ("Clip", "Max", "Min", "Relu")
"""Of -0 and 0 kernels choose either, the last elements of a tensor in another way than others."""

_APPROXIMATED = (
    *("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Celu", "Cos", "Cosh", "Elu", "Erf"),
    *("Exp", "Gelu", "HardSigmoid", "HardSwish", "Log", "Mean", "Mish", "Pow", "Reciprocal"),
    *("Selu", "Sigmoid", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Sum", "Swish", "Tan"),
    *("Tanh", "ThresholdedRelu"),
)
"""Kernels may compute the last elements of a tensor in another way than the others."""


def _elementwise(node: ir.Node, known: Known) -> Carry | None:
    """All operands are broadcast to the result, whose layout all of them take."""
    rank = rank_of(node.outputs[0])
    layout = known.layout
    if rank is None or rank != len(layout) or len(node.outputs) != 1:
        return None
    inputs: dict[int, Permutation] = {}
    constants: dict[int, Array] = {}
    for index, value in enumerate(node.inputs):
        array = constant_array(value)
        operand_rank = rank_of(value)
        if value is None or operand_rank == 0 or (array is not None and array.size == 1):
            continue
        if array is not None and array.ndim <= rank:
            constants[index] = _broadcast_constant(array, layout)
            continue
        found = _operand_layout(value, layout)
        if found is None:
            return None
        inputs[index] = found
    return Carry(inputs, (layout,), {}, constants)


def _broadcast_constant(array: Array, layout: Permutation) -> Array:
    """``array``, which is broadcast from the left, transposed; without leading ones."""
    shape = (1,) * (len(layout) - array.ndim) + array.shape
    moved = np.transpose(array.reshape(shape), layout)
    kept = next((axis for axis, dim in enumerate(moved.shape) if dim != 1), len(layout))
    return moved.reshape(moved.shape[kept:])


def _operand_layout(value: ir.Value, layout: Permutation) -> Permutation | None:
    """The layout of an operand of fewer axes: it has the last ones."""
    rank = rank_of(value)
    if rank is None or rank > len(layout):
        return None
    missing = len(layout) - rank
    if layout[:missing] == identity(missing):
        return tuple(axis - missing for axis in layout[missing:])
    dims = static_shape(value)
    return identity(rank) if dims is not None and set(dims) == {1} else None


def _quantization(node: ir.Node, known: Known) -> Carry | None:
    """QuantizeLinear and DequantizeLinear: the axis of the scales moves along."""
    layout, scale = known.layout, static_shape(node.inputs[1])
    if scale is None or int_attribute(node, "block_size", 0) != 0 or len(scale) > 1:
        return None
    operand = data_operand(node, 0, layout)
    axis = int_attribute(node, "axis", 1)
    if operand is None or axis is None or (known.index and not known.is_output):
        return None
    if scale in ((), (1,)):
        return Carry(operand[0], (layout,), {}, operand[1])
    return Carry(operand[0], (layout,), {"axis": remapped((axis,), layout)[0]}, operand[1])


def _along_an_axis(default: int) -> Handler:
    """Operators whose only axis is the attribute ``axis``: Softmax and the like."""

    def handler(node: ir.Node, known: Known) -> Carry | None:
        axis = int_attribute(node, "axis", default)
        operand = data_operand(node, 0, known.layout)
        if axis is None or operand is None or len(node.outputs) != 1:
            return None
        moved = {"axis": remapped((axis,), known.layout)[0]}
        return Carry(operand[0], (known.layout,), moved, operand[1])

    return handler


def _channels_second(node: ir.Node, known: Known) -> Carry | None:
    """Normalizations of channels: while the channels stay where they are."""
    layout = known.layout
    if layout[:2] != (0, 1) or len(node.outputs) != 1 or rank_of(node.inputs[0]) != len(layout):
        return None
    return None if known.index and not known.is_output else Carry({0: layout}, (layout,))


EXACT: dict[str, Handler] = {
    **dict.fromkeys(_ROUNDED_ONCE, _elementwise),
    "DequantizeLinear": _quantization,
    "QuantizeLinear": _quantization,
}
"""Bit-identical in every layout."""

ROUNDING: dict[str, Handler] = {
    **dict.fromkeys((*_SIGNS_OF_ZERO, *_APPROXIMATED), _elementwise),
    "BatchNormalization": _channels_second,
    "Hardmax": _along_an_axis(-1),
    "InstanceNormalization": _channels_second,
    "LogSoftmax": _along_an_axis(-1),
    "Softmax": _along_an_axis(-1),
}
"""The last bit, or the sign of a zero, may differ."""
