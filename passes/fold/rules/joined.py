"""Ops that pick each element from one of several operands: Max, Min, Where."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.fold.lowering import Extremum, Lowering, Operand, Refusal, Select
from onnxfold.passes.fold.rules.operands import joined_operands, reads, reals
from onnxfold.passes.fold.rules.refusals import not_quantized
from onnxfold.passes.fold.types import Quantized, TypeState


def extremum(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Max or Min of several values: the order of codes is that of the reals."""
    joined = _joined(node, node.inputs, types)
    if isinstance(joined, Refusal):
        return joined
    operands, affine = joined
    types.put(node.outputs[0], Quantized(affine))
    return Extremum(
        node=node,
        reads=reads(*operands),
        plain=reals(*operands),
        covered=(node,),
        operands=operands,
        type=affine,
    )


def select(node: ir.Node, types: TypeState) -> Lowering | Refusal | None:
    """Where: the condition is read as it is."""
    condition = node.inputs[0]
    joined = _joined(node, node.inputs[1:], types)
    if isinstance(joined, Refusal):
        return joined
    operands, affine = joined
    types.put(node.outputs[0], Quantized(affine))
    return Select(
        node=node,
        reads=reads(*operands),
        plain=(*reals(*operands), *((condition,) if condition is not None else ())),
        covered=(node,),
        operands=operands,
        type=affine,
    )


def _joined(
    node: ir.Node, values: Sequence[ir.Value | None], types: TypeState
) -> tuple[tuple[Operand, ...], AffineType] | Refusal:
    output = node.outputs[0]
    joined = joined_operands(values, output, types)
    if joined is None:
        return Refusal(
            "its operands have different scales and its output is not quantized",
            f"quantize '{output.name}', or all operands alike",
        )
    if isinstance(joined, ir.Value):
        return not_quantized(joined, types)
    return joined if reads(*joined[0]) else Refusal("none of its operands has codes")
