"""The invariants of QuantizeLinear and DequantizeLinear: axis, shapes, dtypes, values."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import constant_array

QDQ_OPS = frozenset({"QuantizeLinear", "DequantizeLinear"})

_SCALE_TYPES = frozenset(
    {
        ir.DataType.FLOAT,
        ir.DataType.FLOAT16,
        ir.DataType.BFLOAT16,
        ir.DataType.FLOAT8E8M0,
    }
)
_PER_AXIS_OPSET = 13
_BLOCKED_OPSET = 21


class QdqVerifier:
    """Checks Q/DQ nodes; remembers the scales it has seen, which are often shared."""

    def __init__(self) -> None:
        self._good_scales: set[ir.Value] = set()

    def problem(self, node: ir.Node, opset: int) -> str:
        """What is wrong with ``node``, in words; empty where nothing is.

        Args:
            node: A QuantizeLinear or DequantizeLinear with its required inputs.
            opset: Version its domain is imported at.
        """
        data, scale = node.inputs[0], node.inputs[1]
        zero_point = node.inputs[2] if len(node.inputs) > 2 else None
        if data is None or scale is None:
            return ""
        return (
            _type_problem(node, data, scale, zero_point)
            or _shape_problem(node, data, scale, opset)
            or _zero_point_shape_problem(scale, zero_point)
            or self._value_problem(scale)
            or _int32_problem(node, zero_point)
        )

    def _value_problem(self, scale: ir.Value) -> str:
        if scale in self._good_scales:
            return ""
        values = constant_array(scale)
        if values is None:
            return ""
        numbers = values.astype(np.float64)
        if not bool(np.all(np.isfinite(numbers) & (numbers > 0))):
            return f"the scale '{scale.name}' is not positive and finite"
        self._good_scales.add(scale)
        return ""


def _type_problem(
    node: ir.Node, data: ir.Value, scale: ir.Value, zero_point: ir.Value | None
) -> str:
    if scale.dtype is not None and scale.dtype not in _SCALE_TYPES:
        return f"the scale '{scale.name}' is of type {scale.dtype.name}"
    codes = data if node.op_type == "DequantizeLinear" else node.outputs[0]
    if zero_point is None or zero_point.dtype is None or codes.dtype is None:
        return ""
    if zero_point.dtype == codes.dtype:
        return ""
    return (
        f"the zero point '{zero_point.name}' is {zero_point.dtype.name} and the codes "
        f"'{codes.name}' are {codes.dtype.name}"
    )


def _shape_problem(node: ir.Node, data: ir.Value, scale: ir.Value, opset: int) -> str:
    if scale.shape is None or _is_per_tensor(scale.shape):
        return ""
    is_contrib = bool(node.domain)
    if opset < _PER_AXIS_OPSET and not is_contrib:
        return f"the scale '{scale.name}' must be a scalar before opset {_PER_AXIS_OPSET}"
    if data.shape is None:
        return ""
    rank = len(data.shape)
    axis = node.attributes.get_int("axis", 1)
    if not -rank <= axis < rank:
        return f"axis {axis} is out of range for '{data.name}' of rank {rank}"
    block = node.attributes.get_int("block_size", 0)
    if block and (opset >= _BLOCKED_OPSET or is_contrib):
        return _block_problem(data.shape, scale, axis % rank, block)
    if len(scale.shape) != 1:
        return f"the scale '{scale.name}' has shape {scale.shape}: neither a scalar nor 1-D"
    return _dim_problem(scale, scale.shape[0], data.shape[axis], f"axis {axis} of '{data.name}'")


def _block_problem(shape: ir.Shape, scale: ir.Value, axis: int, block: int) -> str:
    if scale.shape is None or len(scale.shape) != len(shape):
        return f"the scale '{scale.name}' of a blocked node must have rank {len(shape)}"
    for index, (found, size) in enumerate(zip(scale.shape, shape, strict=True)):
        wanted = -(-size // block) if index == axis and isinstance(size, int) else size
        problem = _dim_problem(scale, found, wanted, f"axis {index} in blocks of {block}")
        if problem:
            return problem
    return ""


def _dim_problem(
    scale: ir.Value, found: int | ir.SymbolicDim, wanted: int | ir.SymbolicDim, where: str
) -> str:
    if not isinstance(found, int) or not isinstance(wanted, int) or found == wanted:
        return ""
    return f"the scale '{scale.name}' has {found} elements for {wanted} along {where}"


def _zero_point_shape_problem(scale: ir.Value, zero_point: ir.Value | None) -> str:
    if zero_point is None or zero_point.shape is None or scale.shape is None:
        return ""
    if _is_per_tensor(scale.shape) and _is_per_tensor(zero_point.shape):
        return ""
    if len(scale.shape) == len(zero_point.shape) and all(
        not isinstance(a, int) or not isinstance(b, int) or a == b
        for a, b in zip(scale.shape, zero_point.shape, strict=True)
    ):
        return ""
    return (
        f"the zero point '{zero_point.name}' has shape {zero_point.shape} and the scale "
        f"'{scale.name}' {scale.shape}"
    )


def _int32_problem(node: ir.Node, zero_point: ir.Value | None) -> str:
    if node.op_type != "DequantizeLinear" or zero_point is None:
        return ""
    if zero_point.dtype != ir.DataType.INT32:
        return ""
    values = constant_array(zero_point)
    if values is None or not np.any(values):
        return ""
    return f"the zero point '{zero_point.name}' of int32 codes is not 0"


def _is_per_tensor(shape: ir.Shape) -> bool:
    return len(shape) == 0 or (len(shape) == 1 and shape[0] == 1)
