"""Recurrent ops: their state is real numbers, so only their weights can be codes."""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.passes.fold.lowering import Lowering, Refusal
from onnxfold.passes.fold.rules.refusals import touches_quantization
from onnxfold.passes.fold.types import TypeState


def recur(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Each step rounds nothing: the state that it hands on is a real number."""
    if not touches_quantization(node, types):
        return None
    if node.op_type == "LSTM":
        return Refusal(_REAL_STATE, "for ONNX Runtime, --relax tries one that rounds its state")
    return Refusal(f"{_REAL_STATE}, and onnxruntime has no {node.op_type} that rounds them")


_REAL_STATE = "its state is a real number at every step, which codes would round"

RULES = dict.fromkeys(("GRU", "LSTM", "RNN"), recur)
