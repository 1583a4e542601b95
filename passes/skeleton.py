"""A model as a proto that holds what shape inference reads: no weights, no claims, no metadata."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias, cast

import onnx
import onnx_ir as ir

from onnxfold.passes.literals import static_shape

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

_Nodes: TypeAlias = "RepeatedCompositeFieldContainer[onnx.NodeProto]"
_Opsets: TypeAlias = "RepeatedCompositeFieldContainer[onnx.OperatorSetIdProto]"
_CARRIED_BYTES = 16 * 2**10
"""Largest constant that is carried: shapes, axes and sizes are far smaller."""


def skeleton(model: ir.Model) -> onnx.ModelProto:
    """``model`` with its structure and small constants; large constants are only declared.

    Declared types of intermediate values are left out, except of operators outside ai.onnx, which
    may not be known to whoever infers.
    """
    proto = onnx.ModelProto(ir_version=model.ir_version)
    _import_opsets(proto.opset_import, model.opset_imports)
    _fill_graph(proto.graph, model.graph)
    for function in model.functions.values():
        _fill_function(proto.functions.add(), function)
    return proto


def _fill_graph(proto: onnx.GraphProto, graph: ir.Graph) -> None:
    proto.name = graph.name or ""
    for value in graph.inputs:
        ir.serde.serialize_value_into(proto.input.add(), value)
    for value in graph.initializers.values():
        if value.const_value is not None:
            _fill_tensor(proto.initializer.add(), value.const_value, value.name or "")
    for node in graph:
        _add_node(proto.node, node)
        if node.domain:
            _keep_claims(proto, node.outputs)
    for value in graph.outputs:
        ir.serde.serialize_value_into(proto.output.add(), value)


def _keep_claims(proto: onnx.GraphProto, outputs: Iterable[ir.Value]) -> None:
    for value in outputs:
        if value.name and value.type is not None and not value.is_graph_output():
            ir.serde.serialize_value_into(proto.value_info.add(), value)


def _fill_function(proto: onnx.FunctionProto, function: ir.Function) -> None:
    proto.domain, proto.name, proto.overload = function.identifier()
    _import_opsets(proto.opset_import, function.opset_imports)
    proto.input.extend([value.name or "" for value in function.inputs])
    proto.output.extend([value.name or "" for value in function.outputs])
    for attribute in function.attributes.values():
        if attribute.value is None:
            proto.attribute.append(attribute.name)
        else:
            _fill_attribute(proto.attribute_proto.add(), attribute)
    for node in function:
        _add_node(proto.node, node)


def _add_node(nodes: _Nodes, node: ir.Node) -> None:
    outputs = [value.name or "" for value in node.outputs]
    while outputs and not outputs[-1]:
        outputs.pop()
    proto = nodes.add(
        op_type=node.op_type,
        domain=node.domain,
        overload=node.overload,
        # Errors name the node.
        name=node.name or "",
        input=["" if value is None else value.name or "" for value in node.inputs],
        output=outputs,
    )
    for attribute in node.attributes.data.values():
        _fill_attribute(proto.attribute.add(), attribute)


def _fill_attribute(proto: onnx.AttributeProto, attribute: ir.Attr) -> None:
    if attribute.is_ref():
        ir.serde.serialize_reference_attribute_into(proto, attribute)
        return
    match attribute.type:
        case ir.AttributeType.GRAPH:
            _fill_graph(proto.g, attribute.as_graph())
        case ir.AttributeType.GRAPHS:
            for graph in attribute.as_graphs():
                _fill_graph(proto.graphs.add(), graph)
        case ir.AttributeType.TENSOR:
            # as_tensor() would look through the whole protocol of tensors, every time.
            tensor = cast(ir.TensorProtocol, attribute.value)
            _fill_tensor(proto.t, tensor, tensor.name or "")
        case _:
            ir.serde.serialize_attribute_into(proto, attribute)
            return
    proto.name = attribute.name
    proto.type = cast("onnx.AttributeProto.AttributeType", attribute.type.value)


def _fill_tensor(proto: onnx.TensorProto, tensor: ir.TensorProtocol, name: str) -> None:
    carried = tensor.dtype == ir.DataType.STRING or tensor.nbytes <= _CARRIED_BYTES
    ir.serde.serialize_tensor_into(proto, tensor if carried else _declaration(tensor))
    proto.name = name


def _declaration(tensor: ir.TensorProtocol) -> ir.ExternalTensor:
    shape = static_shape(tensor)
    return ir.ExternalTensor("not-read", 0, tensor.nbytes, tensor.dtype, shape=shape, name="")


def _import_opsets(proto: _Opsets, imports: Mapping[str, int]) -> None:
    for domain, version in imports.items():
        proto.add(domain=domain, version=version)
