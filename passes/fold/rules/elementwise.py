"""Elementwise ops on codes: Add, Mul, scaling by a constant, Relu, Clip."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.constants import Array, constant_scalar
from onnxfold.passes.fold.lowering import (
    Alias,
    Clamp,
    Lowering,
    Operand,
    Product,
    Refusal,
    Sum,
)
from onnxfold.passes.fold.rules.operands import exact_scalar, operand, reads, uniform_operand
from onnxfold.passes.fold.rules.refusals import not_quantized, not_rounded, touches_quantization
from onnxfold.passes.fold.types import Quantized, TypeState


def add(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Sum of a and b, both quantized, or one a constant that 8 bits hold exactly."""
    if not touches_quantization(node, types):
        return None
    return _binary(node, types)


def multiply(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Product; multiplying by a positive constant only changes the scale."""
    if not touches_quantization(node, types):
        return None
    for data, factor in ((0, 1), (1, 0)):
        scale = _scalar_factor(node.inputs[factor])
        if scale is not None and (lowering := _rescale(node, node.inputs[data], scale, types)):
            return lowering
    return _binary(node, types)


def divide(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Division by a positive constant: a change of scale."""
    if not touches_quantization(node, types):
        return None
    divisor = _scalar_factor(node.inputs[1])
    if divisor is None:
        return Refusal("no integer kernel divides by anything but a positive constant")
    lowering = _rescale(node, node.inputs[0], 1.0 / divisor, types)
    return lowering or not_quantized(node.inputs[0], types)


def relu(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """max(x, 0): the smallest code becomes the zero point."""
    return _clamp(node, 0.0, None, types)


def clip(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Limits on the codes, where the bounds are codes or the result is rounded anyway."""
    if not touches_quantization(node, types):
        return None
    bounds: list[float | None] = []
    for index, name in ((1, "min"), (2, "max")):
        value = node.inputs[index] if len(node.inputs) > index else None
        attribute = node.attributes.get(name)
        bound = constant_scalar(value)
        if value is not None and bound is None:
            return Refusal(f"its bound '{value.name}' is computed at run time")
        bounds.append(attribute.as_float() if attribute is not None else bound)
    return _clamp(node, bounds[0], bounds[1], types)


def _scalar_factor(value: ir.Value | None) -> float | None:
    """The positive scalar constant behind ``value``, which cannot broadcast the other operand."""
    number = exact_scalar(value)
    scalar = constant_scalar(value)
    if number is None or scalar is None or number <= 0 or value is None:
        return None
    return number if value.shape is not None and len(value.shape) == 0 else None


def _rescale(
    node: ir.Node, data: ir.Value | None, factor: float, types: TypeState
) -> Lowering | None:
    known = types.activation(data)
    if known is None or data is None or not np.isfinite(np.float32(known.scale * factor)):
        return None
    scaled = types.rescaled(known, factor)
    if not float(scaled.scale) > float(np.finfo(np.float32).tiny):
        return None
    types.put(node.outputs[0], Quantized(scaled))
    return Alias(node=node, reads=(data,), covered=(node,))


def _binary(node: ir.Node, types: TypeState) -> Lowering | Refusal:
    operands: list[Operand] = []
    for value in node.inputs:
        found = operand(value, types) or uniform_operand(value)
        if found is None:
            return not_quantized(value, types)
        operands.append(found)
    output = node.outputs[0]
    want = types.want(output)
    if want is None:
        return not_rounded(output)
    if not reads(*operands):
        return Refusal("both operands are constant", "fold constants first")
    types.put(output, Quantized(want))
    first, second = operands
    read = reads(first, second)
    if node.op_type == "Mul":
        factors = (first, second)
        return Product(node=node, reads=read, covered=(node,), operands=factors, type=want)
    return Sum(
        node=node,
        reads=read,
        covered=(node,),
        operands=(first, second),
        coefficients=(1.0, 1.0),
        type=want,
    )


def _clamp(
    node: ir.Node, low: float | None, high: float | None, types: TypeState
) -> Lowering | Refusal | None:
    if not touches_quantization(node, types):
        return None
    data = node.inputs[0]
    affine = types.activation(data)
    if data is None or affine is None:
        return not_quantized(data, types)
    rounded = types.want(node.outputs[0]) is affine
    codes: list[int] = []
    for bound, limit in zip((low, high), affine.limits, strict=True):
        code = _code_of_bound(affine, bound, limit, rounded=rounded)
        if code is None:
            return Refusal(
                f"its bound {bound} falls between two codes of '{data.name}'",
                f"quantize its output like '{data.name}'",
            )
        codes.append(code)
    types.put(node.outputs[0], Quantized(affine))
    if tuple(codes) == affine.limits:
        return Alias(node=node, reads=(data,), covered=(node,))
    return Clamp(
        node=node, reads=(data,), covered=(node,), low=codes[0], high=codes[1], type=affine
    )


def _code_of_bound(
    affine: AffineType, bound: float | None, limit: int, *, rounded: bool
) -> int | None:
    """The code that stands for ``bound``; ``limit`` where the range implies it; None if inexact."""
    if bound is None:
        return limit
    real: Array = np.asarray(bound, np.float32)
    code = affine.quantize(real)
    exact = bool(affine.dequantize(code) == real)
    extreme = affine.dequantize(np.asarray(limit, np.int64))
    implied = bool(real <= extreme if limit == affine.limits[0] else real >= extreme)
    if not (exact or implied or rounded):
        return None
    return limit if implied else int(code)


RULES = {
    "Add": add,
    "Clip": clip,
    "Div": divide,
    "Mul": multiply,
    "Relu": relu,
}
