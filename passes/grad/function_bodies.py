"""Differentiates operators that ONNX defines by a function: through a copy of that function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import onnx
import onnx_ir as ir

from onnxfold.passes.grad.builder import Builder
from onnxfold.passes.grad.vjp import Call, Gradients
from onnxfold.passes.walk import iterate_graphs


def can_expand(node: ir.Node, opset: int) -> bool:
    """Whether the ONNX standard defines ``node``'s operator by a function without bodies."""
    function = _function(node, opset)
    return function is not None and not any(any(iterate_graphs(inner)) for inner in function)


def expand_function(call: Call, b: Builder) -> Gradients:
    """Write a copy of the function that defines the operator, and differentiate that."""
    node = call.node
    function = _function(node, call.opset)
    if function is None:
        raise call.refusal(f"{node.op_type} has no function body")
    values: dict[ir.Value, ir.Value | None] = dict.fromkeys(function.inputs)
    values.update(zip(function.inputs, node.inputs, strict=False))
    for inner in function:
        inputs = [None if value is None else values[value] for value in inner.inputs]
        attributes = _attributes(inner, node, call.opset)
        outputs = b.nodes(
            inner.op_type, inputs, len(inner.outputs), domain=inner.domain, **attributes
        )
        values.update(zip(inner.outputs, outputs, strict=True))
    seeds: dict[ir.Value, ir.Value] = {}
    for output, gradient in zip(function.outputs, call.gradients, strict=False):
        copy = values[output]
        if copy is not None and gradient is not None:
            seeds[copy] = gradient
    inputs = [value for value in node.inputs if value is not None]
    wanted = [v for v, need in zip(node.inputs, call.needed, strict=True) if v is not None and need]
    found = dict(
        zip(wanted, call.differentiator.gradients(b, seeds, wanted, until=inputs), strict=True)
    )
    # An input that is read twice has one gradient, which holds both parts.
    return [None if value is None else found.pop(value, None) for value in node.inputs]


def _function(node: ir.Node, opset: int) -> ir.Function | None:
    if not onnx.defs.has(node.op_type, opset, node.domain):
        return None
    # The stubs of onnx lack what concerns functions.
    schema = cast("Any", onnx.defs.get_schema(node.op_type, opset, node.domain))
    versions = [int(v) for v in schema.function_opset_versions if v <= opset]
    if versions:
        return _deserialized(schema.get_function_with_opset_version(max(versions)))
    versions = [int(v) for v in schema.context_dependent_function_opset_versions if v <= opset]
    if not versions:
        return None
    types = [
        b"" if value is None else ir.serde.serialize_value(value).type.SerializeToString()
        for value in node.inputs
    ]
    proto = ir.serde.serialize_node(node).SerializeToString()
    return _deserialized(
        schema.get_context_dependent_function_with_opset_version(max(versions), proto, types)
    )


def _deserialized(found: object) -> ir.Function | None:
    proto = onnx.FunctionProto()
    if isinstance(found, bytes):
        proto.ParseFromString(found)
    elif isinstance(found, onnx.FunctionProto):
        proto = found
    return ir.serde.deserialize_function(proto) if proto.node else None


def _attributes(inner: ir.Node, call: ir.Node, opset: int) -> Mapping[str, ir.Attr]:
    """The attributes of ``inner``, with the call's, or the schema's defaults, for parameters."""
    schema = onnx.defs.get_schema(call.op_type, opset, call.domain)
    resolved: dict[str, ir.Attr] = {}
    for name, attribute in inner.attributes.items():
        if not attribute.is_ref():
            resolved[name] = attribute
            continue
        parameter = attribute.ref_attr_name or ""
        given = call.attributes.get(parameter)
        if given is None and parameter in schema.attributes:
            default = schema.attributes[parameter].default_value
            given = ir.serde.deserialize_attribute(default) if default.name else None
        if given is not None and given.value is not None:
            resolved[name] = ir.Attr(name, given.type, given.value)
    return resolved
