"""Removes Expand where what it makes is there already, or broadcast anyway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.shapes import static_shape

_BROADCASTING = (
    *("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "PRelu"),
    *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"),
)
_MULTIDIRECTIONAL = 7
"""The opset from which on elementwise operators broadcast both operands."""


@rule("drop-expand-after-reshape", "Expand")
def _after_reshape(node: ir.Node, rewriter: Rewriter) -> None:
    source, shape = node.inputs
    producer = source.producer() if source is not None else None
    if producer is None or producer.op_type != "Reshape" or producer.domain:
        return
    if producer.inputs[1] is shape:
        rewriter.replace_node(node, [source])


@rule("drop-expand-before-broadcast", "Expand")
def _before_broadcast(node: ir.Node, rewriter: Rewriter) -> None:
    source, output = node.inputs[0], node.outputs[0]
    expanded = static_shape(output)
    if source is None or source.shape is None or expanded is None or output.is_graph_output():
        return
    if rewriter.opset(node) < _MULTIDIRECTIONAL:
        return
    if all(_has_operand_of_shape(each.node, output, expanded) for each in output.uses()):
        rewriter.replace_node(node, [source])


def _has_operand_of_shape(node: ir.Node, value: ir.Value, shape: tuple[int, ...]) -> bool:
    """Whether ``node`` broadcasts ``value`` to ``shape`` because of its other operand."""
    if node.op_type not in _BROADCASTING or node.domain:
        return False
    # PRelu broadcasts its slope only.
    if node.op_type == "PRelu" and node.inputs[0] is value:
        return False
    return any(other is not value and static_shape(other) == shape for other in node.inputs)


@dataclass(frozen=True)
class RemoveRedundantExpand(PatternPass):
    """Remove Expand to the shape that a Reshape just made, or that the reader broadcasts to."""

    name: ClassVar[str] = "remove-redundant-expand"
    contract: ClassVar[Contract] = Contract.EXACT

    def rules(self) -> RuleTable:
        """Both rules."""
        return (_after_reshape, _before_broadcast)
