"""Pooling on codes, and what else averages over elements."""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.passes.fold.lowering import (
    AveragePool,
    Lowering,
    Move,
    Refusal,
    Softmax,
)
from onnxfold.passes.fold.rules.operands import reads
from onnxfold.passes.fold.rules.refusals import not_quantized, touches_quantization
from onnxfold.passes.fold.rules.rounded import rounded_operand
from onnxfold.passes.fold.targets.windows import has_known_windows
from onnxfold.passes.fold.types import Quantized, TypeState, is_wide


def max_pool(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """The largest code is the code of the largest number, and stands where that stands.

    Of equal numbers kernels for codes and for real numbers take the first alike.
    """
    if not touches_quantization(node, types):
        return None
    data = node.inputs[0]
    affine = types.activation(data)
    if data is None or affine is None:
        return not_quantized(data, types)
    if is_wide(affine) and (len(node.outputs) > 1 or not has_known_windows(node)):
        return Refusal(
            "MaxPool of 16 bits has no integer form with indices, or with windows that depend on "
            "sizes not known",
            f"quantize '{data.name}' to 8 bits, or fix the input shapes",
        )
    types.put(node.outputs[0], Quantized(affine))
    return Move(node=node, reads=(data,), covered=(node,))


def global_max_pool(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """The largest code of each channel, over all axes behind the second."""
    if not touches_quantization(node, types):
        return None
    data = node.inputs[0]
    affine = types.activation(data)
    if data is None or affine is None:
        return not_quantized(data, types)
    if data.shape is None and node.outputs[0].shape is None:
        return Refusal(f"the rank of '{data.name}' is not known", "infer shapes first")
    types.put(node.outputs[0], Quantized(affine))
    return Move(node=node, reads=(data,), covered=(node,))


def average_pool(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """The mean of the codes in each window."""
    found = rounded_operand(node, types)
    if not isinstance(found, tuple):
        return found
    operand_, want = found
    types.put(node.outputs[0], Quantized(want))
    return AveragePool(
        node=node, reads=reads(operand_), covered=(node,), operand=operand_, type=want
    )


def softmax(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Softmax between a DequantizeLinear and a QuantizeLinear."""
    found = rounded_operand(node, types)
    if not isinstance(found, tuple):
        return found
    operand_, want = found
    types.put(node.outputs[0], Quantized(want))
    return Softmax(
        node=node,
        reads=reads(operand_),
        covered=(node,),
        operand=operand_,
        axis=node.attributes.get_int("axis", -1),
        type=want,
    )


RULES = {
    "AveragePool": average_pool,
    "GlobalMaxPool": global_max_pool,
    "MaxPool": max_pool,
    "Softmax": softmax,
}

ON_CODES = frozenset({"MaxPool"})
"""The ops that mean the same whatever the codes stand for."""
