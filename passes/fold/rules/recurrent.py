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
    return Refusal("its state is a real number at every step, which codes would round")


RULES = dict.fromkeys(("GRU", "LSTM", "RNN"), recur)
