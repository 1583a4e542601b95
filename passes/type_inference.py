"""Types and shapes that follow from the inputs: of a whole model, and of one new node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import onnx
import onnx.shape_inference
import onnx_ir as ir

from onnxfold.passes.constants import constant_tensor
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.skeleton import skeleton

_Dim: TypeAlias = int | str | None
_TensorType: TypeAlias = tuple[ir.DataType, list[_Dim] | None]
"""Element type, and the dimensions where the rank is known."""

_CARRIED_BYTES = 16 * 2**10
"""Largest constant whose value inference may read: shapes, axes and sizes are far smaller."""


def infer_model_types(model: ir.Model, rewriter: Rewriter) -> None:
    """Write the types of all intermediate values into ``model``, in one step ``set-type``.

    What the model declares for graph inputs and outputs stays. A failure of inference is a remark.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton(model), data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        first = next(iter(model.graph), None)
        if first is not None:
            reason = str(error).strip().splitlines()[0]
            rewriter.remark(first, f"shape inference failed: {reason}")
        return
    with rewriter.step("set-type"):
        _write_types(model.graph, inferred.graph, rewriter)


def infer_node_types(node: ir.Node, opsets: Mapping[str, int], ir_version: int) -> None:
    """Give the outputs of a new node, which has no bodies, the types that follow from its inputs.

    Types of outputs stay unknown where the operator or an input's type is.
    """
    version = opsets.get(node.domain)
    if version is None or not onnx.defs.has(node.op_type, version, node.domain):
        return
    schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for value in node.inputs:
        if value is None:
            continue
        if value.type is None:
            return
        types[value.name or ""] = _type_proto(value)
        tensor = constant_tensor(value)
        if tensor is not None and tensor.nbytes <= _CARRIED_BYTES:
            data[value.name or ""] = ir.serde.serialize_tensor(tensor)
    imports = [onnx.helper.make_opsetid(domain, number) for domain, number in opsets.items()]
    try:
        found = onnx.shape_inference.infer_node_outputs(
            schema, ir.serde.serialize_node(node), types, data, None, imports, ir_version
        )
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return
    for output in node.outputs:
        proto = found.get(output.name or "")
        inferred = None if proto is None else _tensor_type(proto)
        if inferred is None:
            continue
        output.type = ir.TensorType(inferred[0])
        if inferred[1] is not None:
            output.shape = ir.Shape(inferred[1])


def _type_proto(value: ir.Value) -> onnx.TypeProto:
    return ir.serde.serialize_value(value).type


def _write_types(graph: ir.Graph, inferred: onnx.GraphProto, rewriter: Rewriter) -> None:
    types = _tensor_types(inferred)
    for index, node in enumerate(graph):
        for output in node.outputs:
            found = types.get(output.name or "")
            if found is not None and not output.is_graph_output():
                _write_type(output, found, rewriter)
        for name, attribute in node.attributes.data.items():
            if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
                body = _body(inferred.node[index], name)
                _write_types(attribute.as_graph(), body, rewriter)


def _tensor_types(graph: onnx.GraphProto) -> dict[str, _TensorType]:
    types: dict[str, _TensorType] = {}
    # Few types are distinct, and to read one field by field takes longer than all the rest.
    known: dict[bytes, _TensorType | None] = {}
    for info in graph.value_info:
        key = info.type.SerializeToString()
        if key not in known:
            known[key] = _tensor_type(info.type)
        found = known[key]
        if found is not None:
            types[info.name] = found
    return types


def _tensor_type(proto: onnx.TypeProto) -> _TensorType | None:
    if not proto.HasField("tensor_type") or not proto.tensor_type.elem_type:
        return None
    dims = None
    if proto.tensor_type.HasField("shape"):
        dims = [_dim(dim) for dim in proto.tensor_type.shape.dim]
    return ir.DataType(proto.tensor_type.elem_type), dims


def _dim(dim: onnx.TensorShapeProto.Dimension) -> _Dim:
    if dim.HasField("dim_value"):
        return dim.dim_value
    return dim.dim_param or None


def _body(node: onnx.NodeProto, name: str) -> onnx.GraphProto:
    return next(attribute.g for attribute in node.attribute if attribute.name == name)


def _write_type(value: ir.Value, found: _TensorType, rewriter: Rewriter) -> None:
    dtype, dims = found
    declared = _plain(value.shape)
    shape = None if dims is None else _merged(dims, declared)
    new_dtype = dtype if value.dtype != dtype else None
    new_shape = shape if declared != shape else None
    if new_dtype is not None or new_shape is not None:
        rewriter.set_type(value, new_dtype, new_shape)


def _plain(shape: ir.Shape | None) -> list[_Dim] | None:
    if shape is None:
        return None
    return [dim if isinstance(dim, int) else dim.value for dim in shape]


def _merged(found: list[_Dim], declared: list[_Dim] | None) -> list[_Dim]:
    """What was found, completed by declared dimensions where inference knows nothing."""
    if declared is None or len(declared) != len(found):
        return found
    pairs = zip(found, declared, strict=True)
    return [new if isinstance(new, int) else _named(old) or new for new, old in pairs]


def _named(dim: _Dim) -> _Dim:
    """``dim``, unless an earlier inference made its name up: this one may have used it anew."""
    return None if isinstance(dim, str) and dim.startswith("unk__") else dim
