"""Copies what lies between some values and a result, reading other values in their place."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxfold.passes.errors import UsageError
from onnxfold.passes.grad.builder import Builder
from onnxfold.passes.walk import iterate_graphs, label


def copy_between(
    builder: Builder, replaced: Mapping[ir.Value, ir.Value], result: ir.Value
) -> ir.Value:
    """``result``, computed again with other values in the place of some.

    Args:
        builder: Writes the copies.
        replaced: What is read instead of each value.
        result: What is computed.

    Returns:
        The copy; ``result`` itself where it depends on none of the values.

    Raises:
        UsageError: A node between them has bodies.
    """
    copies = dict(replaced)
    graph = result.graph
    for node in list(graph or ()):
        if result in copies:
            break
        if not any(value in copies for value in node.inputs if value is not None):
            continue
        if any(iterate_graphs(node)):
            raise UsageError(
                f"{label(node)} has bodies: Gradient must be given the tensors that it names"
            )
        inputs = [None if value is None else copies.get(value, value) for value in node.inputs]
        outputs = builder.nodes(
            node.op_type, inputs, len(node.outputs), domain=node.domain, **node.attributes
        )
        copies.update(
            (old, new) for old, new in zip(node.outputs, outputs, strict=True) if old not in copies
        )
    return copies.get(result, result)
