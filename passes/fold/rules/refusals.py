"""Why a result cannot be computed in integers, in words a user can act on."""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.passes.constants import constant_array
from onnxfold.passes.fold.lowering import Refusal
from onnxfold.passes.fold.types import TypeState, is_quantize
from onnxfold.passes.walk import label


def touches_quantization(node: ir.Node, types: TypeState) -> bool:
    """Whether an input is dequantized or an output is quantized."""
    if any(types.get(value) is not None for value in node.inputs):
        return True
    return any(
        is_quantize(reader) and index == 0
        for output in node.outputs
        for reader, index in output.uses()
    )


def not_quantized(value: ir.Value | None, types: TypeState) -> Refusal:
    """The refusal for an operand without codes."""
    if value is not None and constant_array(value) is not None:
        return Refusal(f"its constant {types.reason(value)}", "quantize it per tensor to 8 bits")
    name = "the operand" if value is None else f"'{value.name}'"
    return Refusal(types.reason(value), f"quantize {name} per tensor to 8 bits")


def not_rounded(output: ir.Value) -> Refusal:
    """The refusal for a result that is not quantized, or not by all that reads it alike."""
    advice = f"put one QuantizeLinear/DequantizeLinear pair on '{output.name}'"
    if output.is_graph_output():
        return Refusal(f"its output '{output.name}' leaves the graph unrounded", advice)
    for node, index in output.uses():
        if not (is_quantize(node) and index == 0):
            return Refusal(f"its output is read unrounded by {label(node)}", advice)
    return Refusal("its output is quantized in several ways, or not to 8 bits per tensor", advice)
