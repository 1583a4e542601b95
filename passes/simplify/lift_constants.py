"""lift-constants: turn Constant nodes into initializers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.constants import constant_tensor
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.rewriter import Rewriter


@rule("lift-constant", "Constant")
def lift_constant(node: ir.Node, rewriter: Rewriter) -> None:
    """Turn a Constant node into an initializer of its graph, under the same name."""
    output = node.outputs[0]
    tensor = constant_tensor(output)
    graph = node.graph
    if tensor is None or graph is None or output.is_graph_output():
        return
    # A local function has no initializers.
    if rewriter.scopes.in_function(graph):
        return
    lifted = rewriter.add_initializer(graph, tensor, name=f"{output.name}_lifted")
    rewriter.swap_names(lifted, output)
    rewriter.replace_node(node, [lifted])


@dataclass(frozen=True)
class LiftConstants(PatternPass):
    """Turn Constant nodes into initializers, where weights are looked for and shared.

    In the main graph and in If, Loop and Scan bodies; Constant nodes that are graph outputs or
    inside local functions stay.
    """

    name: ClassVar[str] = "lift-constants"
    contract: ClassVar[Contract] = Contract.EXACT

    def rules(self) -> RuleTable:
        """The one rule."""
        return (lift_constant,)
