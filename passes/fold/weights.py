"""Weights of ops that stay float: dequantized once, ahead of time."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.fold.guards import feeds_quantize, reads_dequantized
from onnxfold.passes.fold.plan import Plan
from onnxfold.passes.fold.types import TypeState
from onnxfold.passes.fold.unread import erase_unread
from onnxfold.passes.rewriter import Rewriter

_LINEAR_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_RECURRENT_OPS = ("GRU", "LSTM", "RNN")
_FASTER_AHEAD = (
    "its weights are dequantized ahead of time, to four times the size: doing so at every run "
    "takes 10 to 50 % longer, as measured"
)


def dequantize_weights(plan: Plan, rewriter: Rewriter, guarded: Collection[ir.Node]) -> None:
    """Give ops that stay float constant float weights, where that is safe and wanted.

    Recurrent ops always: ONNX Runtime packs their weights when it loads them, if they are constant.
    Linear ops not where only the weights are quantized (they were packed for size), and not between
    a DequantizeLinear and a QuantizeLinear: ONNX Runtime would quantize the float weights again,
    per tensor. Ops in ``guarded`` do not read a DequantizeLinear any more.
    """
    for node in plan.refusals:
        if node.graph is None or node.domain or not _wants_float(node, plan, guarded):
            continue
        if node.op_type in _RECURRENT_OPS:
            rewriter.remark(node, _FASTER_AHEAD)
        for index, value in enumerate(node.inputs[1:], start=1):
            real = _dequantized(value, plan.types)
            if value is None or real is None:
                continue
            with rewriter.step("dequantize-weights", node):
                constant = rewriter.constant(node, real, name=f"{value.name}_real")
                rewriter.set_input(node, index, constant)
            erase_unread(value, rewriter)


def _wants_float(node: ir.Node, plan: Plan, guarded: Collection[ir.Node]) -> bool:
    if node.op_type in _RECURRENT_OPS:
        return True
    if node.op_type not in _LINEAR_OPS:
        return False
    quantized = plan.types.get(node.inputs[0]) is not None or reads_dequantized(node)
    return node in guarded or (quantized and not feeds_quantize(node))


def _dequantized(value: ir.Value | None, types: TypeState) -> Array | None:
    known = types.get(value)
    if value is None or value.producer() is None or known is None or known.codes is None:
        return None
    return known.type.dequantize(known.codes)
