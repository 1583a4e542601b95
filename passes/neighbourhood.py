"""A node and what surrounds it, as ONNX-like text for error messages."""

from __future__ import annotations

import onnx_ir as ir

_MOST_CONSUMERS = 4
_LONGEST_ATTRIBUTE = 40


def neighbourhood(node: ir.Node) -> str:
    """The node (marked ``>``), the producers of its inputs and the consumers of its outputs."""
    producers = dict.fromkeys(
        producer
        for value in node.inputs
        if value is not None and (producer := value.producer()) is not None
    )
    consumers = dict.fromkeys(use.node for output in node.outputs for use in output.uses())
    lines = [f"  {describe_node(each)}" for each in producers if each is not node]
    lines.append(f"> {describe_node(node)}")
    others = [each for each in consumers if each is not node]
    lines += [f"  {describe_node(each)}" for each in others[:_MOST_CONSUMERS]]
    if len(others) > _MOST_CONSUMERS:
        lines.append(f"  ... and {len(others) - _MOST_CONSUMERS} more consumers")
    return "\n".join(lines)


def describe_node(node: ir.Node) -> str:
    """``y: FLOAT[2] = Mul <axis = 1> (x, w)  # node name``."""
    outputs = ", ".join(_declare(output) for output in node.outputs)
    inputs = ", ".join("" if value is None else str(value.name) for value in node.inputs)
    op_type = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    attributes = ", ".join(f"{key} = {_attribute(node.attributes[key])}" for key in node.attributes)
    options = f" <{attributes}>" if attributes else ""
    name = f"  # {node.name}" if node.name else ""
    removed = "" if node.graph is not None else "  # removed from the graph"
    return f"{outputs} = {op_type}{options} ({inputs}){name}{removed}"


def _declare(value: ir.Value) -> str:
    if value.type is None:
        return str(value.name)
    return f"{value.name}: {value.type}{'' if value.shape is None else value.shape}"


def _attribute(attribute: ir.Attr) -> str:
    if attribute.is_ref():
        return f"@{attribute.ref_attr_name}"
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return "{...}"
    text = " ".join(str(attribute.value).split())
    return text if len(text) <= _LONGEST_ATTRIBUTE else f"{text[:_LONGEST_ATTRIBUTE]}..."
