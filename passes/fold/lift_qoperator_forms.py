"""What quantized operators compute, as real operators between dequantized and quantized values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import INTEGER_LIMITS, AffineType
from onnxfold.passes.constants import Array, constant_array, constant_tensor
from onnxfold.passes.fold.targets.builder import CONTRIB
from onnxfold.passes.fold.types import DEQUANTIZE

PER_CHANNEL_OPSET = 13
"""The first with several scales in DequantizeLinear."""
_SOFTMAX_OF_ONE_AXIS = 13  # before, along all axes from one on


class NotLiftableError(Exception):
    """The operator stays as it is; ``advice`` says what would help."""

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason)
        self.advice = advice


@dataclass(frozen=True, eq=False)
class Dequantized:
    """An operand: codes, and how they stand for real numbers.

    Attributes:
        codes: The codes: a value, or constants that none holds yet.
        type: Their type.
    """

    codes: ir.Value | Array
    type: AffineType

    def constants(self) -> Array | None:
        """The codes where they are constant."""
        return constant_array(self.codes) if isinstance(self.codes, ir.Value) else self.codes


@dataclass(frozen=True, eq=False)
class RealForm:
    """A quantized operator as the real operator it stands for.

    Attributes:
        node: The node whose output it computes; the last one where it stands for several.
        op_type: The real operator.
        inputs: Its operands; plain values are read as they are.
        attributes: Its attributes.
        type: The type its result is quantized to; None where it is left real.
        addend: What is added to the result, before it is quantized: a real value, or codes.
        covered: The nodes it stands for, ``node`` included.
    """

    node: ir.Node
    op_type: str
    inputs: tuple[Dequantized | ir.Value | None, ...]
    attributes: dict[str, ir.Attr] = field(default_factory=dict[str, ir.Attr])
    type: AffineType | None = None
    addend: Dequantized | ir.Value | None = None
    covered: tuple[ir.Node, ...] = ()


LiftRule = Callable[[ir.Node, int], RealForm | None]
"""Reads a node, under the opset of ai.onnx; None where there is nothing to lift.

Raises NotLiftableError.
"""


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """Input ``index`` of ``node``; None where it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def needed(node: ir.Node, index: int) -> ir.Value:
    """Input ``index`` of ``node``.

    Raises:
        NotLiftableError: It is absent.
    """
    value = input_at(node, index)
    if value is None:
        raise NotLiftableError(f"its input {index} is absent")
    return value


def affine(
    node: ir.Node,
    scale_index: int,
    zero_index: int,
    codes: ir.DataType | None,
    axis: int | None = None,
) -> AffineType:
    """The type that a pair of inputs of ``node`` describes.

    Args:
        node: The quantized operator.
        scale_index: Position of the scale.
        zero_index: Position of the zero point; absent means 0.
        codes: Type of the codes where the zero point is absent.
        axis: The axis that several scales follow; None where only one is meant.

    Raises:
        NotLiftableError: They are computed, of another type than float32, or too many.
    """
    scale = constant_array(needed(node, scale_index))
    zero_value = input_at(node, zero_index)
    zero_tensor = constant_tensor(zero_value)
    if scale is None or (zero_value is not None and zero_tensor is None):
        raise NotLiftableError("its scales or zero points are computed at run time")
    dtype = codes if zero_tensor is None else zero_tensor.dtype
    if dtype is None or dtype not in INTEGER_LIMITS:
        raise NotLiftableError("the type of its codes is not known", "infer shapes first")
    return affine_of(scale, None if zero_tensor is None else zero_tensor.numpy(), dtype, axis)


def affine_of(scale: Array, zero: Array | None, dtype: ir.DataType, axis: int | None) -> AffineType:
    """The type of codes with these parameters.

    Raises:
        NotLiftableError: They are no valid scales, or too many.
    """
    if scale.dtype != np.float32 or not bool(np.all(np.isfinite(scale) & (scale > 0))):
        raise NotLiftableError("its scales are not positive float32 numbers")
    zero = np.zeros(scale.shape, dtype.numpy()) if zero is None else zero
    if scale.size == zero.size == 1:
        return AffineType(scale.reshape(()), zero.reshape(()), dtype)
    size = max(scale.size, zero.size)
    if axis is None or max(scale.shape[-1:] + zero.shape[-1:]) != size:
        raise NotLiftableError("it has several scales where one is meant")
    scales = np.ascontiguousarray(np.broadcast_to(scale.reshape(-1), (size,)))
    zeros = np.ascontiguousarray(np.broadcast_to(zero.reshape(-1), (size,)))
    return AffineType(scales, zeros, dtype, axis)


def dequantized(
    node: ir.Node, index: int, scale_index: int, zero_index: int, axis: int | None = None
) -> Dequantized:
    """Input ``index`` with the parameters at the other two positions (see ``affine``)."""
    codes = needed(node, index)
    return Dequantized(codes, affine(node, scale_index, zero_index, codes.dtype, axis))


def plain_attributes(node: ir.Node, *dropped: str) -> dict[str, ir.Attr]:
    """The attributes of ``node`` that the real operator has too.

    Raises:
        NotLiftableError: The node is channels-last, which no real operator is.
    """
    if node.attributes.get_int("channels_last", 0):
        raise NotLiftableError(
            "it is in a channels-last form, as ONNX Runtime's optimizer and the fold make",
            "start from the model as it was before",
        )
    return {
        name: attribute
        for name, attribute in node.attributes.items()
        if name not in (*dropped, "channels_last")
    }


def _unary(node: ir.Node, _opset: int) -> RealForm:
    x = dequantized(node, 0, 1, 2)
    return RealForm(
        node,
        node.op_type.removeprefix("QLinear"),
        (x,),
        plain_attributes(node),
        affine(node, 3, 4, x.type.dtype),
    )


def _softmax(node: ir.Node, opset: int) -> RealForm:
    form = _unary(node, opset)
    meant = node.attributes.get_int("opset", 0) >= _SOFTMAX_OF_ONE_AXIS
    axis, shape = node.attributes.get_int("axis", -1 if meant else 1), needed(node, 0).shape
    is_last = axis == -1 or (shape is not None and axis == len(shape) - 1)
    if meant != (opset >= _SOFTMAX_OF_ONE_AXIS) and not is_last:
        raise NotLiftableError("its axis has the meaning of another opset", "upgrade the opset")
    assert form.type is not None
    rounded = replace(form.type, scale=_softmax_scale(form.type.scale))
    return replace(form, attributes={"axis": ir.AttrInt64("axis", axis)}, type=rounded)


def _softmax_scale(scale: Array) -> Array:
    """The scale that QLinearSoftmax rounds with: its kernel multiplies by floor(1 / scale)."""
    steps = np.floor(np.reciprocal(scale))
    return scale if steps * scale == 1 else np.asarray(1 / max(steps, 1), np.float32)


def _binary(node: ir.Node, _opset: int) -> RealForm:
    left, right = dequantized(node, 0, 1, 2), dequantized(node, 3, 4, 5)
    return RealForm(
        node,
        node.op_type.removeprefix("QLinear"),
        (left, right),
        type=affine(node, 6, 7, left.type.dtype),
    )


def _where(node: ir.Node, _opset: int) -> RealForm:
    inputs = (needed(node, 0), dequantized(node, 1, 2, 3), dequantized(node, 4, 5, 6))
    return RealForm(node, "Where", inputs, type=affine(node, 7, 8, inputs[1].type.dtype))


def _concat(node: ir.Node, _opset: int) -> RealForm:
    parts = range(2, len(node.inputs), 3)
    inputs = tuple(dequantized(node, index, index + 1, index + 2) for index in parts)
    return RealForm(node, "Concat", inputs, plain_attributes(node), affine(node, 0, 1, None))


def _edge(node: ir.Node, opset: int) -> RealForm | None:
    """QuantizeLinear or DequantizeLinear of com.microsoft, where ai.onnx has the same."""
    zero_point, scale = input_at(node, 2), needed(node, 1)
    codes = zero_point or (needed(node, 0) if node.op_type == DEQUANTIZE else None)
    dtype = ir.DataType.UINT8 if codes is None else codes.dtype
    # Other codes came with opset 21, other scales with 19; the fold reads them where they are.
    if dtype not in (ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.INT32):
        return None
    if scale.dtype != ir.DataType.FLOAT:
        return None
    if opset < PER_CHANNEL_OPSET and (scale.shape is None or scale.shape.rank()):
        return None
    return RealForm(node, node.op_type, tuple(node.inputs), dict(node.attributes))


RULES: dict[str, LiftRule] = {
    f"{CONTRIB}::QLinearAdd": _binary,
    f"{CONTRIB}::QLinearAveragePool": _unary,
    f"{CONTRIB}::QLinearConcat": _concat,
    f"{CONTRIB}::QLinearGlobalAveragePool": _unary,
    f"{CONTRIB}::QLinearLeakyRelu": _unary,
    f"{CONTRIB}::QLinearMul": _binary,
    f"{CONTRIB}::QLinearSigmoid": _unary,
    f"{CONTRIB}::QLinearSoftmax": _softmax,
    f"{CONTRIB}::QLinearWhere": _where,
}
"""Elementwise operators, pooling, and what moves codes, by domain and type."""

EDGES: dict[str, LiftRule] = {
    f"{CONTRIB}::DequantizeLinear": _edge,
    f"{CONTRIB}::QuantizeLinear": _edge,
}
"""QuantizeLinear and DequantizeLinear of ONNX Runtime's own domain."""
