"""Ops of one quantized operand whose result is rounded: what most of them need to be there."""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.fold.lowering import Operand, Refusal
from onnxfold.passes.fold.rules.operands import operand
from onnxfold.passes.fold.rules.refusals import not_quantized, not_rounded, touches_quantization
from onnxfold.passes.fold.types import TypeState


def rounded_operand(node: ir.Node, types: TypeState) -> tuple[Operand, AffineType] | Refusal | None:
    """The one operand and the type its result is rounded to, where both are there."""
    if not touches_quantization(node, types):
        return None
    found = operand(node.inputs[0], types)
    if found is None or found.value is None:
        return not_quantized(node.inputs[0], types)
    want = types.want(node.outputs[0])
    return not_rounded(node.outputs[0]) if want is None else (found, want)
