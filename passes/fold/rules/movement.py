"""Ops that move, select or copy elements: they do the same to codes, whose order is the reals'."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import Array, constant_array, constant_ints, constant_scalar
from onnxfold.passes.fold.lowering import Alias, Concat, Lowering, Move, Operand, Refusal
from onnxfold.passes.fold.rules.operands import operand, reads
from onnxfold.passes.fold.rules.refusals import not_quantized, touches_quantization
from onnxfold.passes.fold.types import Quantized, TypeState, is_activation_type

_CONSTANT_MOVES = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})


def move(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """The op on codes; its other inputs (shapes, indices) stay as they are."""
    if not touches_quantization(node, types):
        return None
    data = node.inputs[0]
    known = types.get(data)
    if data is None or known is None:
        return not_quantized(data, types)
    if not is_activation_type(known.type):
        return Refusal("it moves per-channel or wide codes", "quantize per tensor to 8 bits")
    for output in node.outputs:
        types.put(output, Quantized(known.type))
    return Move(node=node, reads=(data,), plain=_others(node), covered=(node,))


def identity(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Identity: the same codes."""
    known = types.get(node.inputs[0])
    data = node.inputs[0]
    if known is None or data is None:
        return None
    types.put(node.outputs[0], known)
    return None if known.codes is not None else Alias(node=node, reads=(data,), covered=(node,))


def pad(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Padding with the code of the padding value: the zero point where it is 0."""
    data = node.inputs[0]
    affine = types.activation(data)
    if affine is None or data is None:
        return not_quantized(data, types) if touches_quantization(node, types) else None
    if "pads" in node.attributes:
        return Refusal("Pad before opset 11 has no integer form", "upgrade the opset")
    constants: dict[int, Array] = {}
    if node.attributes.get_string("mode", "constant") == "constant":
        value = node.inputs[2] if len(node.inputs) > 2 else None
        number = 0.0 if value is None else constant_scalar(value)
        if number is None:
            return Refusal("its padding value is computed at run time")
        real = np.asarray(number, np.float32)
        code = affine.quantize(real)
        rounded = types.want(node.outputs[0]) is affine
        if not rounded and affine.dequantize(code) != real:
            return Refusal(f"its padding value {number} is not a code of '{data.name}'")
        constants[2] = code
    types.put(node.outputs[0], Quantized(affine))
    plain = tuple(v for i, v in enumerate(node.inputs) if v is not None and i not in (0, 2))
    return Move(node=node, reads=(data,), plain=plain, covered=(node,), constants=constants)


def resize(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Nearest-neighbour Resize selects elements; interpolation does not."""
    if not touches_quantization(node, types):
        return None
    if node.attributes.get_string("mode", "nearest") != "nearest":
        return Refusal("interpolation has no integer kernel", "use mode nearest")
    if node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return Refusal("tf_crop_and_resize fills with a real number")
    return move(node, types)


def concat(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Concatenation; operands of other types are requantized, float constants quantized."""
    if not touches_quantization(node, types):
        return None
    output = node.outputs[0]
    want = types.want(output) or _common_type(node, types)
    operands: list[Operand] = []
    for value in node.inputs:
        found = operand(value, types) or _quantized(value, types.want(output))
        if found is None:
            return not_quantized(value, types)
        operands.append(found)
    if want is None:
        return Refusal(
            "its operands have different scales and its output is not quantized",
            f"quantize '{output.name}', or all operands alike",
        )
    if not reads(*operands):
        return Refusal("all operands are constant", "fold constants first")
    types.put(output, Quantized(want))
    return Concat(
        node=node,
        reads=reads(*operands),
        plain=tuple(each.real for each in operands if each.real is not None),
        covered=(node,),
        operands=tuple(operands),
        type=want,
    )


def _common_type(node: ir.Node, types: TypeState) -> AffineType | None:
    found = [types.activation(value) for value in node.inputs]
    return found[0] if all(each is found[0] for each in found) else None


def _quantized(value: ir.Value | None, want: AffineType | None) -> Operand | None:
    """A real operand in the type all readers of the result ask for."""
    array = constant_array(value)
    if want is None or value is None:
        return None
    if array is None:
        return Operand(want, real=value)
    return Operand(want, codes=want.quantize(array)) if array.dtype == np.float32 else None


def _others(node: ir.Node) -> tuple[ir.Value, ...]:
    return tuple(value for value in node.inputs[1:] if value is not None)


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
    return codes.reshape(shape), _axis_after_reshape(codes.shape, shape, axis)


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


def _axis_after_reshape(
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


RULES = {
    "Concat": concat,
    "DepthToSpace": move,
    "Expand": move,
    "Flatten": move,
    "Gather": move,
    "Identity": identity,
    "Pad": pad,
    "ReduceMax": move,
    "ReduceMin": move,
    "Reshape": move,
    "Resize": resize,
    "Slice": move,
    "SpaceToDepth": move,
    "Split": move,
    "Squeeze": move,
    "Tile": move,
    "Transpose": move,
    "Unsqueeze": move,
}

PURE = (move, identity, resize)
"""Rules that do not look at what the codes stand for."""
