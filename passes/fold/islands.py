"""Saying what stayed float, and why."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import constant_array
from onnxfold.passes.fold.plan import Plan
from onnxfold.passes.fold.rules import RULES
from onnxfold.passes.fold.rules.linear import RULES as LINEAR_OPS
from onnxfold.passes.fold.types import is_dequantize, is_quantize
from onnxfold.passes.rewriter import Rewriter


def meant_to_be_integer(plan: Plan) -> frozenset[ir.Node]:
    """The refused ops that whoever placed the quantizers expects to compute on codes.

    Not those that merely begin or end a region: what is float on one side is so on purpose. To be
    asked before the plan is carried out.
    """
    return frozenset(node for node in plan.refusals if _is_meant(node, plan))


def remark_islands(plan: Plan, meant: frozenset[ir.Node], rewriter: Rewriter) -> None:
    """One remark for each refused op in ``meant``, and for each edge."""
    for node in (node for graph in plan.graphs for node in graph):
        refusal = plan.refusals.get(node)
        if refusal is not None:
            if node in meant:
                rewriter.remark(node, refusal.reason, refusal.advice)
        elif is_quantize(node):
            _remark_quantize(node, rewriter)
        elif is_dequantize(node):
            _remark_dequantize(node, rewriter)


def _is_meant(node: ir.Node, plan: Plan) -> bool:
    quantized = [_is_dequantized(value, plan) for value in node.inputs]
    outputs = [each for each in node.outputs if _is_rounded(each, plan)]
    if node.op_type in LINEAR_OPS and not node.domain:
        return quantized[1] or (quantized[0] and bool(outputs))
    has_rule = node.op_type in RULES and not node.domain
    return any(quantized) and (bool(outputs) or not has_rule)


def _is_dequantized(value: ir.Value | None, plan: Plan) -> bool:
    producer = None if value is None else value.producer()
    known = plan.types.get(value) is not None
    return known or (producer is not None and is_dequantize(producer))


def _is_rounded(value: ir.Value, plan: Plan) -> bool:
    return plan.types.want(value) is not None or any(
        is_quantize(node) and index == 0 for node, index in value.uses()
    )


def _remark_quantize(node: ir.Node, rewriter: Rewriter) -> None:
    source = node.inputs[0]
    if source is None:
        return
    producer = source.producer()
    if producer is None and source.is_graph_input():
        rewriter.remark(node, f"the graph input '{source.name}' is float", "feed it as codes")
    elif producer is not None and is_dequantize(producer) and _is_shift(producer, node):
        rewriter.remark(
            node,
            f"int8 codes of '{source.name}' are shifted to or from uint8",
            "use uint8 at the edges of the graph",
        )
    elif producer is not None and is_dequantize(producer):
        rewriter.remark(
            node,
            f"'{source.name}' is requantized: its readers disagree about its scale",
            "use one scale and zero point on both sides",
        )


def _is_shift(dequantize: ir.Node, quantize: ir.Node) -> bool:
    """Whether the pair only changes the type of the codes."""
    scales = [constant_array(node.inputs[1]) for node in (dequantize, quantize)]
    codes = dequantize.inputs[0]
    if scales[0] is None or scales[1] is None or codes is None:
        return False
    return codes.dtype != quantize.outputs[0].dtype and np.array_equal(scales[0], scales[1])


def _remark_dequantize(node: ir.Node, rewriter: Rewriter) -> None:
    output = node.outputs[0]
    if output.is_graph_output():
        rewriter.remark(node, f"the graph output '{output.name}' is float", "read it as codes")
