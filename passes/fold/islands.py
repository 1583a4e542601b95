"""Saying why operators and quantizers stay as they are; ``find_islands`` makes islands of it."""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.passes.fold.plan import Plan
from onnxfold.passes.fold.types import is_dequantize, is_quantize
from onnxfold.passes.rewriter import Rewriter


def remark_refusals(plan: Plan, rewriter: Rewriter) -> None:
    """One remark for each refused op that is left, and for each Q or DQ no kernel can take in."""
    for node in plan.order:
        if node.graph is None:
            continue
        refusal = plan.refusals.get(node)
        if refusal is not None:
            rewriter.remark(node, refusal.reason, refusal.advice)
        elif is_quantize(node) or (is_dequantize(node) and not _is_constant(node, plan)):
            reason = _unusable(node, plan)
            if reason:
                rewriter.remark(
                    node, reason, "use one constant float32 scale per tensor and 8 bits"
                )


def remark_asymmetric(plan: Plan, rewriter: Rewriter) -> None:
    """One remark for each QuantizeLinear whose codes are not int8 with zero point 0."""
    for node in [each for graph in plan.graphs for each in graph if is_quantize(each)]:
        affine = plan.types.parameters(node)
        if affine is None or (affine.dtype == ir.DataType.INT8 and affine.symmetric):
            continue
        kind, zero = affine.dtype.name.lower(), affine.zero_point.reshape(-1)[0]
        rewriter.remark(
            node,
            f"'{node.outputs[0].name}' is {kind} around {zero}, TensorRT takes int8 around 0",
            "quantize activations symmetrically, to int8",
        )


def _is_constant(node: ir.Node, plan: Plan) -> bool:
    known = plan.types.get(node.outputs[0])
    return known is not None and known.codes is not None


def _unusable(node: ir.Node, plan: Plan) -> str:
    """Why codes of the type of ``node`` are nothing to compute with; empty where they are."""
    affine, name = plan.types.parameters(node), node.outputs[0].name
    if affine is None:
        return f"the scale of '{name}' is blocked, not constant, or not float32"
    if plan.types.takes(affine):
        return ""
    kind = "per channel" if affine.dtype.bitwidth == 8 else f"to {affine.dtype.name.lower()}"
    return f"'{name}' is quantized {kind}, which no integer kernel takes"
