"""Constants followed through data movement: weights on their way to, or from, DequantizeLinear."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import Array, constant_array, constant_ints
from onnxfold.passes.fold.types import Quantized, TypeState

_CONSTANT_MOVES = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})


def move_constant(node: ir.Node, types: TypeState) -> bool:
    """Follow constants through ``node``: weights on their way to a DequantizeLinear, or from one.

    Returns:
        Whether the output of ``node`` is a known constant.
    """
    if node.domain or node.op_type not in _CONSTANT_MOVES or node.inputs[0] is None:
        return False
    known = types.get(node.inputs[0])
    if known is not None and known.codes is not None:
        _move_codes(node, known, known.codes, types)
        return types.get(node.outputs[0]) is not None
    numbers = constant_array(node.inputs[0])
    if numbers is None:
        numbers = types.moved.get(node.inputs[0])
    moved = None if numbers is None else _moved(node, numbers, None)
    if moved is not None:
        types.moved[node.outputs[0]] = moved[0]
    return moved is not None


def _move_codes(node: ir.Node, known: Quantized, codes: Array, types: TypeState) -> None:
    """Record the moved codes of a constant, where the channel axis can be followed."""
    output, affine = node.outputs[0], known.type
    moved = _moved(node, codes, affine.axis)
    if moved is None:
        return
    if affine.axis is not None and moved[1] is None:
        types.refuse(output, f"{node.op_type} mixes the channels of '{output.name}'")
        return
    result = AffineType(affine.scale, affine.zero_point, affine.dtype, moved[1])
    types.put(output, Quantized(types.intern(result), moved[0]))


def _moved(node: ir.Node, codes: Array, axis: int | None) -> tuple[Array, int | None] | None:
    """Constant codes after ``node``, and where axis ``axis`` went; None where not known."""
    if node.op_type == "Transpose":
        default = tuple(reversed(range(codes.ndim)))
        perm = tuple(node.attributes.get_ints("perm", default) or default)
        turned: Array = np.transpose(codes, perm)
        return turned, None if axis is None else perm.index(axis)
    if node.op_type not in _CONSTANT_MOVES:
        return None
    shape = _static_result(node, codes)
    if shape is None:
        return None
    return codes.reshape(shape), axis_after_reshape(codes.shape, shape, axis)


def _static_result(node: ir.Node, codes: Array) -> tuple[int, ...] | None:
    """The shape a reshaping op gives a constant; None where it is not known."""
    if node.op_type == "Reshape":
        wanted = constant_ints(node.inputs[1])
        if wanted is None or (0 in wanted and node.attributes.get_int("allowzero", 0)):
            return None
        shape = [codes.shape[i] if dim == 0 else dim for i, dim in enumerate(wanted)]
        if -1 in shape:
            shape[shape.index(-1)] = codes.size // -math.prod(shape)
        return tuple(shape)
    if node.op_type == "Flatten":
        axis = node.attributes.get_int("axis", 1) % (codes.ndim + 1)
        return math.prod(codes.shape[:axis]), math.prod(codes.shape[axis:])
    result = node.outputs[0].shape
    if result is None or not result.is_static():
        return None
    return tuple(result.numpy())


def axis_after_reshape(
    before: tuple[int, ...], after: tuple[int, ...], axis: int | None
) -> int | None:
    """Where the channel axis went: the axis of equal size with as many elements before it."""
    if axis is None:
        return None
    leading = math.prod(before[:axis])
    for index, size in enumerate(after):
        if size == before[axis] and math.prod(after[:index]) == leading:
            return index
    return None
