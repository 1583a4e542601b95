"""Pooling on codes, and what else averages over elements."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.fold.lowering import (
    AveragePool,
    Lowering,
    Move,
    Operand,
    Reduction,
    Refusal,
    Softmax,
)
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
    """The mean of each channel's codes over all axes behind the second."""
    found = _rounded_operand(node, types)
    if not isinstance(found, tuple):
        return found
    operand_, want = found
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    sizes = None if shape is None else list(shape)[2:]
    known = [size for size in sizes or () if isinstance(size, int)]
    types.put(node.outputs[0], Quantized(want))
    return Reduction(
        node=node,
        reads=reads(operand_),
        covered=(node,),
        operand=operand_,
        axes=None if sizes is None else tuple(range(2, 2 + len(sizes))),
        keepdims=True,
        divisor=math.prod(known) if sizes is not None and len(known) == len(sizes) else None,
        type=want,
    )


def average_pool(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """The mean of the codes in each window."""
    found = _rounded_operand(node, types)
    if not isinstance(found, tuple):
        return found
    operand_, want = found
    types.put(node.outputs[0], Quantized(want))
    return AveragePool(
        node=node, reads=reads(operand_), covered=(node,), operand=operand_, type=want
    )


def softmax(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Softmax between a DequantizeLinear and a QuantizeLinear."""
    found = _rounded_operand(node, types)
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


def _rounded_operand(
    node: ir.Node, types: TypeState
) -> tuple[Operand, AffineType] | Refusal | None:
    """The one operand and the type its result is rounded to, where both are there."""
    if not touches_quantization(node, types):
        return None
    found = operand(node.inputs[0], types)
    if found is None or found.value is None:
        return not_quantized(node.inputs[0], types)
    want = types.want(node.outputs[0])
    return not_rounded(node.outputs[0]) if want is None else (found, want)


RULES = {
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average,
    "GlobalMaxPool": global_max_pool,
    "MaxPool": max_pool,
    "Softmax": softmax,
}
