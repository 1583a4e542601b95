"""The constants of a product, and of what follows it element by element, in another order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.layouts.carry import NewConstant, int_attribute
from onnxfold.passes.layouts.elementwise import EXACT, ROUNDING
from onnxfold.passes.op_kinds import is_dequantize, is_quantize
from onnxfold.passes.shapes import static_shape
from onnxfold.passes.walk import use_count

_PER_COLUMN = ("Add", "Div", "Mul", "PRelu", "Sub")


@dataclass(frozen=True)
class ProductForm:
    """How a MatMul or Gemm takes its operands.

    Attributes:
        turned: Whether the first one is transposed.
        across: Whether the second one is.
    """

    turned: bool
    across: bool


def product_form(node: ir.Node) -> ProductForm | None:
    """The form of a MatMul or Gemm of ai.onnx; None for other nodes."""
    if node.domain or node.op_type not in ("MatMul", "Gemm"):
        return None
    turned, across = int_attribute(node, "transA", 0), int_attribute(node, "transB", 0)
    return None if turned is None or across is None else ProductForm(turned != 0, across != 0)


def keeps_order(node: ir.Node) -> bool:
    """Whether each element of the only operand that is not one number becomes one element."""
    if is_quantize(node) or is_dequantize(node):
        return static_shape(node.inputs[1]) in ((), (1,)) and "block_size" not in node.attributes
    if node.domain or node.op_type not in EXACT | ROUNDING or len(node.outputs) != 1:
        return False
    if node.op_type in ("Softmax", "LogSoftmax", "Hardmax") or "Norm" in node.op_type:
        return False
    others = [constant_array(each) for each in node.inputs[1:] if each is not None]
    return all(each is not None and each.size == 1 for each in others)


def permuted_operand(node: ir.Node, index: int, axis: int, order: Array) -> list[NewConstant]:
    """A constant operand, quantized or not, with ``axis`` in ``order``; nothing for others."""
    value = node.inputs[index]
    dequantize = value.producer() if value is not None else None
    if dequantize is None or not is_dequantize(dequantize):
        return _permuted(node, index, axis, order)
    scale, along = static_shape(dequantize.inputs[1]), int_attribute(dequantize, "axis", 1)
    if use_count(dequantize.outputs[0]) != 1 or "block_size" in dequantize.attributes:
        return []
    stored = _permuted(dequantize, 0, axis, order)
    if scale in ((), (1,)) or not stored:
        return stored
    if scale is None or len(scale) != 1 or along is None:
        return []
    if along % stored[0].array.ndim != axis:
        return stored
    given = [at for at, each in enumerate(dequantize.inputs) if each is not None and at]
    parameters = [each for at in given for each in _permuted(dequantize, at, 0, order)]
    return [*stored, *parameters] if len(parameters) == len(given) else []


def columns_in_order(value: ir.Value, order: Array) -> list[NewConstant]:
    """Constants to change so that the last axis of ``value``, a matrix, comes in ``order``.

    Empty where it is not made by a product with constants and operators that keep its order.
    """
    node = value.producer()
    if node is None or use_count(value) != 1 or value.is_graph_output():
        return []
    form = product_form(node)
    if form is not None:
        weights = permuted_operand(node, 1, 0 if form.across else 1, order)
        biased = len(node.inputs) > 2 and node.inputs[2] is not None
        bias = _row(node, 2, order) if biased else []
        return [] if not weights or bias is None else [*weights, *bias]
    source = node.inputs[0]
    if source is not None and keeps_order(node):
        return columns_in_order(source, order)
    return _through_columns(node, order)


def _through_columns(node: ir.Node, order: Array) -> list[NewConstant]:
    """Arithmetic with one constant for each column."""
    if node.domain or node.op_type not in _PER_COLUMN:
        return []
    for index, source in enumerate(node.inputs):
        constants = None if source is None else _row(node, 1 - index, order)
        if source is not None and constants is not None:
            before = columns_in_order(source, order)
            return [*before, *constants] if before else []
    return []


def _row(node: ir.Node, index: int, order: Array) -> list[NewConstant] | None:
    """An operand that is a row of constants, or one; None where it is something else."""
    value = node.inputs[index]
    dims = static_shape(value)
    if dims == () or (dims is not None and set(dims) == {1}):
        return [] if constant_array(value) is not None else None
    if dims is None or dims[-1] != order.size or any(dim != 1 for dim in dims[:-1]):
        return None
    return permuted_operand(node, index, len(dims) - 1, order) or None


def _permuted(node: ir.Node, index: int, axis: int, order: Array) -> list[NewConstant]:
    array = constant_array(node.inputs[index])
    if array is None or array.ndim <= axis or array.shape[axis] != order.size:
        return []
    return [NewConstant(node, index, np.take(array, order, axis))]
