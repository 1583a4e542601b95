"""Copies what lies between some values and a result, reading other values in their place."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxfold.passes.grad.bodies import copied_body
from onnxfold.passes.grad.builder import Builder
from onnxfold.passes.grad.dependence import read_besides
from onnxfold.passes.literals import AttributeValue


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
    """
    copies = dict(replaced)
    for node in list(result.graph or ()):
        if result in copies:
            break
        if not any(value in copies for value in (*node.inputs, *read_besides(node))):
            continue
        inputs = [None if value is None else copies.get(value, value) for value in node.inputs]
        attributes: dict[str, AttributeValue] = {
            name: _copied(builder, attribute, copies) for name, attribute in node.attributes.items()
        }
        outputs = builder.nodes(
            node.op_type, inputs, len(node.outputs), domain=node.domain, **attributes
        )
        for old, new in zip(node.outputs, outputs, strict=True):
            builder.assume_like(new, old)
            copies.setdefault(old, new)
    return copies.get(result, result)


def _copied(
    builder: Builder, attribute: ir.Attr, copies: Mapping[ir.Value, ir.Value]
) -> AttributeValue:
    if attribute.type != ir.AttributeType.GRAPH:
        return attribute
    return ir.AttrGraph(attribute.name, copied_body(builder, attribute.as_graph(), dict(copies)))
