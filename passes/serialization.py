"""A model as bytes: deterministic, self-contained, of an IR version that runtimes read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import EncodeError

from onnxfold.passes.collector import paused_collector
from onnxfold.passes.errors import UsageError
from onnxfold.passes.walk import all_graphs, all_nodes

NEWEST_IR_VERSION = 13
"""What is written is no newer: ONNX Runtime stops here."""
METADATA_IR_VERSION = 10
"""From here on nodes and values have metadata, functions overloads and tensors 4-bit types."""
EMBEDDED_LIMIT = 3 << 29
"""Up to this many bytes of tensors (1.5 GiB) a model is one file; protobuf stops at 2 GiB."""

_NEWER_TYPES = {
    ir.DataType.FLOAT4E2M1: 11,
    ir.DataType.FLOAT8E8M0: 12,
    ir.DataType.INT2: 13,
    ir.DataType.UINT2: 13,
}


def model_bytes(model: ir.Model) -> bytes:
    """The serialized model, with all tensors inside; equal models give equal bytes.

    Raises:
        UsageError: The model does not fit into one protobuf message (2 GiB).
    """
    try:
        return to_proto(with_embedded_tensors(model)).SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        size = tensor_bytes(model)
        raise UsageError(
            f"model '{model.graph.name}' holds {size} bytes of tensors, more than one file takes"
        ) from error


def write_model(model: ir.Model, folder: Path, name: str) -> list[str]:
    """Write the model into ``folder``, which should be empty, and return the files' names.

    One file called ``name``; from ``EMBEDDED_LIMIT`` on the tensors go into ``name.data``.
    """
    if tensor_bytes(model) <= EMBEDDED_LIMIT:
        (folder / name).write_bytes(model_bytes(model))
        return [name]
    data_name = f"{name}.data"
    clone = model.clone()
    clone.ir_version = written_ir_version(model)
    ir.save(clone, folder / name, format="protobuf", external_data=data_name)
    return [data_name, name]


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The model as a proto of the IR version it is written in."""
    with paused_collector():
        proto = ir.to_proto(model)
    proto.ir_version = written_ir_version(model)
    for graph in _proto_graphs(proto):
        for tensor in graph.initializer:
            _deduplicate(tensor)
    return proto


def written_ir_version(model: ir.Model) -> int:
    """The model's own IR version, raised to what its contents need, at most the newest."""
    own = min(model.ir_version, NEWEST_IR_VERSION)
    if own >= NEWEST_IR_VERSION:
        return own
    if own < METADATA_IR_VERSION and _needs_metadata_version(model):
        own = METADATA_IR_VERSION
    types = {value.dtype for graph in all_graphs(model) for value in graph.initializers.values()}
    types |= {value.dtype for node in all_nodes(model) for value in node.outputs}
    return max(own, *(version for dtype, version in _NEWER_TYPES.items() if dtype in types), 1)


def with_embedded_tensors(model: ir.Model) -> ir.Model:
    """``model``, or a copy whose external tensors are read where there are some."""
    if not any(isinstance(tensor, ir.ExternalTensor) for tensor in all_tensors(model)):
        return model
    copy = model.clone()
    for graph in all_graphs(copy):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _read(value.const_value)
    for node in all_nodes(copy):
        for name, attribute in list(node.attributes.items()):
            if _holds_external(attribute):
                node.attributes[name] = ir.AttrTensor(name, _read(attribute.as_tensor()))
    return copy


def all_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every tensor of the model: initializers and attributes of every graph."""
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    for node in all_nodes(model):
        for attribute in node.attributes.values():
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.TENSOR:
                yield attribute.as_tensor()
            elif attribute.type == ir.AttributeType.TENSORS:
                yield from attribute.as_tensors()


def tensor_bytes(model: ir.Model) -> int:
    """The size of all tensors together, in bytes."""
    return sum(tensor.nbytes for tensor in all_tensors(model))


def _holds_external(attribute: ir.Attr) -> bool:
    return (
        attribute.type == ir.AttributeType.TENSOR
        and not attribute.is_ref()
        and isinstance(attribute.as_tensor(), ir.ExternalTensor)
    )


def _read(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    # A copy: whoever saves over the file it is mapped from must not change it.
    array = np.array(tensor.numpy())
    return ir.Tensor(array, dtype=tensor.dtype, shape=_shape(tensor), name=tensor.name)


def _shape(tensor: ir.TensorProtocol) -> ir.Shape:
    return ir.Shape(tensor.shape.numpy())


def _needs_metadata_version(model: ir.Model) -> bool:
    if any(overload for _, _, overload in model.functions):
        return True
    types = {ir.DataType.INT4, ir.DataType.UINT4}
    return any(
        node.metadata_props or any(output.dtype in types for output in node.outputs)
        for node in all_nodes(model)
    )


def _proto_graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    yield from _with_bodies(proto.graph)
    for function in proto.functions:
        for body in _bodies(function.node):
            yield from _with_bodies(body)


def _with_bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for body in _bodies(graph.node):
        yield from _with_bodies(body)


def _bodies(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield attribute.g
            elif attribute.type == onnx.AttributeProto.GRAPHS:
                yield from attribute.graphs


def _deduplicate(tensor: onnx.TensorProto) -> None:
    """Undo a bug of onnx_ir 1.1, which writes the metadata of initializers twice."""
    if not tensor.metadata_props:
        return
    pairs = {each.key: each.value for each in tensor.metadata_props}
    del tensor.metadata_props[:]
    for key, value in pairs.items():
        tensor.metadata_props.add(key=key, value=value)
