"""Fuses the primitives of a softmax into Softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.constants import constant_scalar
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.reductions import Reduction, unrestored
from onnxfold.passes.rewriter import Rewriter

_ONE_AXIS = 13
"""The opset from which on Softmax works along one axis, not over all that follow."""


@rule("fuse-softmax", "Div")
def _fuse(node: ir.Node, rewriter: Rewriter) -> None:
    exponential, divisor = node.inputs
    source = _shifted_source(exponential)
    if exponential is None or divisor is None or source is None:
        return
    total = Reduction.match(unrestored(divisor), "ReduceSum")
    if total is None or total.source is not exponential:
        return
    shifted = _only_input(exponential)
    largest = _largest(shifted, source)
    if largest is None or largest.axis != total.axis or total.restored(divisor) is None:
        return
    if rewriter.opset(node) < _ONE_AXIS:
        rewriter.remark(node, "Softmax along one axis needs opset 13", "run upgrade-opset first")
        return
    rewriter.replace_node(
        node,
        [
            rewriter.insert(
                node,
                "Softmax",
                [source],
                name=node.name or "softmax",
                attributes={"axis": total.axis},
                dtype=source.dtype,
                shape=source.shape,
            )
        ],
    )


def _only_input(value: ir.Value | None) -> ir.Value | None:
    producer = value.producer() if value is not None else None
    return producer.inputs[0] if producer is not None and producer.inputs else None


def _shifted_source(exponential: ir.Value | None) -> ir.Value | None:
    """X of ``Exp(x - ...)``."""
    node = exponential.producer() if exponential is not None else None
    if node is None or node.op_type != "Exp" or node.domain:
        return None
    shift = node.inputs[0].producer() if node.inputs[0] is not None else None
    return shift.inputs[0] if shift is not None and shift.op_type == "Sub" else None


def _largest(shifted: ir.Value | None, source: ir.Value) -> Reduction | None:
    """The maximum of ``source`` that is taken off it."""
    shift = shifted.producer() if shifted is not None else None
    subtrahend = shift.inputs[1] if shift is not None else None
    if subtrahend is None:
        return None
    reduced = _without_floor(unrestored(subtrahend))
    reduction = Reduction.match(reduced, "ReduceMax")
    if reduction is None or reduction.source is not source:
        return None
    return reduction if reduction.restored(subtrahend) is not None else None


def _without_floor(value: ir.Value | None) -> ir.Value | None:
    """``value`` without a Max with minus infinity around it."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Max" or len(node.inputs) != 2:
        return value
    for operand, other in (tuple(node.inputs), tuple(reversed(node.inputs))):
        if constant_scalar(operand) == float("-inf"):
            return other
    return value


@dataclass(frozen=True)
class FuseSoftmax(PatternPass):
    """Fuse Exp(x - max x) / sum Exp(x - max x) along one axis into Softmax."""

    name: ClassVar[str] = "fuse-softmax"
    contract: ClassVar[Contract] = Contract.REASSOCIATED

    def rules(self) -> RuleTable:
        """The one rule."""
        return (_fuse,)
