"""Pooling on codes, and ops with a Q on either side whose float kernel is faster."""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.passes.fold.lowering import GlobalAverage, Lowering, Move, Refusal, Unfused
from onnxfold.passes.fold.rules.operands import operand, reads
from onnxfold.passes.fold.rules.refusals import not_quantized, not_rounded, touches_quantization
from onnxfold.passes.fold.types import Quantized, TypeState


def max_pool(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """The largest code is the code of the largest number."""
    if not touches_quantization(node, types):
        return None
    data = node.inputs[0]
    affine = types.activation(data)
    if data is None or affine is None:
        return not_quantized(data, types)
    if len(node.outputs) > 1:
        return Refusal("the integer kernel returns no indices", "remove the second output")
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


def global_average(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """The mean of each channel's codes, rounded to the type of the result."""
    decision = unfused(node, types)
    if not isinstance(decision, Unfused):
        return decision
    return GlobalAverage(
        node=node,
        reads=decision.reads,
        covered=(node,),
        operand=decision.operand,
        type=decision.type,
    )


def unfused(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """An op whose float kernel beats the integer one: see ``costs``."""
    if not touches_quantization(node, types):
        return None
    found = operand(node.inputs[0], types)
    if found is None or found.value is None:
        return not_quantized(node.inputs[0], types)
    output = node.outputs[0]
    want = types.want(output)
    if want is None:
        return not_rounded(output)
    types.put(output, Quantized(want))
    return Unfused(node=node, reads=reads(found), covered=(node,), operand=found, type=want)


RULES = {
    "AveragePool": unfused,
    "GlobalAveragePool": global_average,
    "GlobalMaxPool": global_max_pool,
    "MaxPool": max_pool,
    "Softmax": unfused,
}
