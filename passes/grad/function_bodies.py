"""Differentiates operators that ONNX defines by a function: through a copy of that function."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, cast

import onnx
import onnx.shape_inference
import onnx_ir as ir

from onnxfold.passes.constants import constant_tensor
from onnxfold.passes.grad.bodies import copied_body
from onnxfold.passes.grad.builder import Builder
from onnxfold.passes.grad.compositions import gradients_through
from onnxfold.passes.grad.vjp import Call, Gradients
from onnxfold.passes.literals import AttributeValue
from onnxfold.passes.walk import nested_graphs

_CARRIED_BYTES = 16 * 2**10
"""Largest constant whose value inference may read: shapes, axes and sizes are far smaller."""


def can_expand(node: ir.Node, opset: int) -> bool:
    """Whether the ONNX standard defines ``node``'s operator by a function."""
    return _function(node, opset) is not None


def expand_function(call: Call, b: Builder) -> Gradients:
    """Write a copy of the function that defines the operator, and differentiate that."""
    node = call.node
    function = _function(node, call.opset)
    if function is None:
        raise call.refusal(f"{node.op_type} has no function body")
    body = _typed_body(function, node, call.opset)
    given = dict(zip(function.input, node.inputs, strict=False))
    values: dict[ir.Value, ir.Value] = {}
    for formal in body.inputs:
        actual = given.get(formal.name or "")
        if actual is not None:
            values[formal] = actual
    for inner in body:
        _write(b, inner, values)
    named = {value.name: copy for value, copy in values.items()}
    return gradients_through(call, b, [named.get(output) for output in function.output])


def _write(b: Builder, inner: ir.Node, values: dict[ir.Value, ir.Value]) -> None:
    """Write one node of the function, and note what its outputs are."""
    inputs = [None if value is None else values.get(value) for value in inner.inputs]
    attributes: dict[str, AttributeValue] = {
        name: ir.AttrGraph(name, copied_body(b, attribute.as_graph(), dict(values)))
        if attribute.type == ir.AttributeType.GRAPH
        else attribute
        for name, attribute in inner.attributes.items()
    }
    outputs = b.nodes(inner.op_type, inputs, len(inner.outputs), domain=inner.domain, **attributes)
    for old, new in zip(inner.outputs, outputs, strict=True):
        # Inference over the whole function knows what shapes are computed to, too.
        new.type = old.type or new.type
        new.shape = new.shape if old.shape is None else ir.Shape(old.shape)
        values[old] = new


def _function(node: ir.Node, opset: int) -> onnx.FunctionProto | None:
    if not onnx.defs.has(node.op_type, opset, node.domain):
        return None
    # The stubs of onnx lack what concerns functions.
    schema = cast("Any", onnx.defs.get_schema(node.op_type, opset, node.domain))
    versions = [int(v) for v in schema.function_opset_versions if v <= opset]
    if versions:
        return _parsed(schema.get_function_with_opset_version(max(versions)))
    versions = [int(v) for v in schema.context_dependent_function_opset_versions if v <= opset]
    if not versions:
        return None
    types = [b"" if value is None else _type_of(value).SerializeToString() for value in node.inputs]
    proto = ir.serde.serialize_node(node).SerializeToString()
    return _parsed(
        schema.get_context_dependent_function_with_opset_version(max(versions), proto, types)
    )


def _parsed(found: object) -> onnx.FunctionProto | None:
    proto = onnx.FunctionProto()
    if isinstance(found, bytes):
        proto.ParseFromString(found)
    elif isinstance(found, onnx.FunctionProto):
        proto = found
    return proto if proto.node else None


def _type_of(value: ir.Value) -> onnx.TypeProto:
    return ir.serde.serialize_value(value).type


def _typed_body(function: onnx.FunctionProto, call: ir.Node, opset: int) -> ir.Graph:
    """The function as a graph, with the attributes of one call and types that follow from it."""
    model = onnx.ModelProto(ir_version=onnx.IR_VERSION)
    model.opset_import.extend(function.opset_import)
    given = {attribute.name: attribute for attribute in ir.serde.serialize_node(call).attribute}
    defaults = onnx.defs.get_schema(call.op_type, opset, call.domain).attributes
    for name, parameter in defaults.items():
        if parameter.default_value.name:
            given.setdefault(name, parameter.default_value)
    present = _fill_inputs(model.graph, function, call)
    for inner in function.node:
        _add_resolved(model.graph, inner, given, present)
        present.update(inner.output)
    with contextlib.suppress(onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    body = ir.from_proto(model).graph
    symbols = {
        dim.value
        for value in call.inputs
        for dim in (() if value is None or value.shape is None else value.shape)
        if isinstance(dim, ir.SymbolicDim)
    }
    for graph in (body, *nested_graphs(body)):
        for output in (output for node in graph for output in node.outputs):
            _forget_symbols(output, symbols)
    return body


def _fill_inputs(graph: onnx.GraphProto, function: onnx.FunctionProto, call: ir.Node) -> set[str]:
    """Declare what the call gives; the names of that."""
    present: set[str] = set()
    graph.name = call.op_type
    for name, value in zip(function.input, call.inputs, strict=False):
        if value is None:
            continue
        present.add(name)
        info = graph.input.add(name=name)
        if value.type is not None:
            info.type.CopyFrom(_type_of(value))
        tensor = constant_tensor(value)
        if tensor is not None and tensor.nbytes <= _CARRIED_BYTES:
            stored = graph.initializer.add()
            stored.CopyFrom(ir.serde.serialize_tensor(tensor))
            stored.name = name
    return present


def _add_resolved(
    graph: onnx.GraphProto,
    inner: onnx.NodeProto,
    given: Mapping[str, onnx.AttributeProto],
    present: set[str],
) -> None:
    """Add a node, with values for the parameters that it refers to."""
    node = graph.node.add()
    node.CopyFrom(inner)
    del node.attribute[:]
    for attribute in inner.attribute:
        value = given.get(attribute.ref_attr_name) if attribute.ref_attr_name else attribute
        if value is not None:
            resolved = node.attribute.add()
            resolved.CopyFrom(value)
            resolved.name = attribute.name
    for index, name in enumerate(node.input):
        node.input[index] = name if name in present else ""


def _forget_symbols(value: ir.Value, known: set[str | None]) -> None:
    """Unname dimensions that inference made up: in the model another may have that name."""
    if value.shape is not None:
        dims = [dim if isinstance(dim, int) or dim.value in known else None for dim in value.shape]
        value.shape = ir.Shape(dims)
