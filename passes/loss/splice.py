"""Splices a loss, which is a small model of its own, into the model that it judges."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxfold.passes.errors import PassError
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import iterate_graphs, label


def splice(
    part: ir.Model, bindings: Mapping[str, ir.Value], prefix: str, rewriter: Rewriter
) -> tuple[ir.Value, ...]:
    """Append the nodes of ``part`` to the main graph, inside a step.

    Args:
        part: A model of standard operators without bodies, of the opset of the main graph.
        bindings: For each input of ``part`` the value of the main graph that takes its place.
        prefix: What the names of its nodes and constants begin with.
        rewriter: The gate to the model, whose main graph has at least one node.

    Returns:
        What the outputs of ``part`` became, in order.

    Raises:
        PassError: A node of ``part`` holds a body.
    """
    graph = rewriter.model.graph
    known: dict[ir.Value, ir.Value] = {
        each: bindings[each.name or ""] for each in part.graph.inputs
    }
    for name, value in part.graph.initializers.items():
        if value.const_value is not None and value.uses():
            known[value] = rewriter.add_initializer(
                graph, value.const_value, name=f"{prefix}_{name}"
            )
    for node in part.graph:
        if any(True for _ in iterate_graphs(node)):
            raise PassError(f"{label(node)} of {prefix} holds a body: write it without If and Loop")
        inserted = rewriter.insert_node(
            graph[-1],
            node.op_type,
            [None if value is None else known[value] for value in node.inputs],
            name=f"{prefix}_{node.op_type.lower()}",
            attributes=dict(node.attributes),
            domain=node.domain,
            outputs=len(node.outputs),
            after=True,
        )
        for old, new in zip(node.outputs, inserted.outputs, strict=True):
            rewriter.set_type(new, old.dtype, old.shape)
            known[old] = new
    return tuple(known[value] for value in part.graph.outputs)
