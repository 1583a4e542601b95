"""Ops that say where elements are, or how many: codes are ordered and placed as the reals are."""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.passes.fold.lowering import Lowering, Move, Refusal
from onnxfold.passes.fold.rules.refusals import not_quantized, touches_quantization
from onnxfold.passes.fold.types import Quantized, TypeState


def index(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """The op on codes, whose outputs are integers as they are; ties are ties of the reals too."""
    if not touches_quantization(node, types):
        return None
    data = node.inputs[0]
    known = types.get(data)
    if data is None or known is None:
        return not_quantized(data, types)
    if not types.takes(known.type):
        return Refusal("it reads per-channel or wide codes", "quantize per tensor to 8 bits")
    others = tuple(value for value in node.inputs[1:] if value is not None)
    return Move(node=node, reads=(data,), plain=others, covered=(node,))


def top_k(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """The largest codes, and where they were."""
    lowering, known = index(node, types), types.get(node.inputs[0])
    if isinstance(lowering, Move) and known is not None:
        types.put(node.outputs[0], Quantized(known.type))
    return lowering


RULES = {
    "ArgMax": index,
    "ArgMin": index,
    "Shape": index,
    "Size": index,
    "TopK": top_k,
}

ON_CODES = frozenset(RULES)
"""The ops that mean the same whatever the codes stand for."""
