"""infer-shapes: write down the types and shapes that follow from the inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx.shape_inference
import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import all_graphs

_CARRIED_BYTES = 16 * 2**10
"""Largest constant handed to shape inference: shapes, axes and sizes are far smaller."""


@dataclass(frozen=True)
class InferShapes(Pass):
    """Infer element types and shapes of all intermediate values, propagating shape arithmetic.

    Types that the model declares for graph inputs and outputs are never changed. What it declares
    for intermediate values is checked: where inference finds another dimension, that one is taken.
    Local functions are left out, since a function has no types before it is called.
    """

    name: ClassVar[str] = "infer-shapes"
    contract: ClassVar[Contract] = Contract.EXACT

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Infer on a copy without weights, and write the results into the model."""
        proto = _without_weights(model)
        _forget_claims(proto.graph)
        try:
            inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
            first = next(iter(model.graph), None)
            if first is not None:
                reason = str(error).strip().splitlines()[0]
                rewriter.remark(first, f"shape inference failed: {reason}")
            return
        with rewriter.step("set-type"):
            _write_types(model.graph, inferred.graph, rewriter)


def _without_weights(model: ir.Model) -> onnx.ModelProto:
    """The model as a proto in which large tensors are only declared, not held."""
    light = model.clone()
    for graph in all_graphs(light):
        for value in graph.initializers.values():
            if value.const_value is not None and _is_large(value.const_value):
                value.const_value = _declaration(value.const_value)
        for node in graph:
            attribute = node.attributes.get("value") if node.op_type == "Constant" else None
            if attribute is None or attribute.is_ref():
                continue
            tensor = attribute.as_tensor()
            if _is_large(tensor):
                node.attributes["value"] = ir.AttrTensor("value", _declaration(tensor))
    return ir.to_proto(light)


def _is_large(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype != ir.DataType.STRING and tensor.nbytes > _CARRIED_BYTES


def _declaration(tensor: ir.TensorProtocol) -> ir.ExternalTensor:
    shape = ir.Shape(tensor.shape.numpy())
    return ir.ExternalTensor(
        "not-read", 0, tensor.nbytes, tensor.dtype, shape=shape, name=tensor.name or ""
    )


def _forget_claims(graph: onnx.GraphProto) -> None:
    """Drop declared types of intermediate values, except of operators that cannot be inferred."""
    opaque = {output for node in graph.node if node.domain for output in node.output}
    kept = [info for info in graph.value_info if info.name in opaque]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    for node in graph.node:
        for body in _bodies(node):
            _forget_claims(body)


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _write_types(graph: ir.Graph, inferred: onnx.GraphProto, rewriter: Rewriter) -> None:
    types = {info.name: info.type for info in inferred.value_info}
    for node, proto in zip(graph, inferred.node, strict=True):
        for output in node.outputs:
            found = types.get(output.name or "")
            if found is not None and not output.is_graph_output():
                _write_type(output, found, rewriter)
        bodies = {each.name: each for each in proto.attribute}
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
                _write_types(attribute.as_graph(), bodies[name].g, rewriter)


def _write_type(value: ir.Value, found: onnx.TypeProto, rewriter: Rewriter) -> None:
    if not found.HasField("tensor_type") or not found.tensor_type.elem_type:
        return
    dtype = ir.DataType(found.tensor_type.elem_type)
    shape = None
    if found.tensor_type.HasField("shape"):
        shape = _merged([_dim(dim) for dim in found.tensor_type.shape.dim], value.shape)
    new_dtype = dtype if value.type is None or value.dtype != dtype else None
    new_shape = shape if shape is not None and _plain(value.shape) != shape else None
    if new_dtype is not None or new_shape is not None:
        rewriter.set_type(value, new_dtype, new_shape)


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return dim.dim_value
    return dim.dim_param or None


def _plain(shape: ir.Shape | None) -> list[int | str | None] | None:
    if shape is None:
        return None
    return [dim if isinstance(dim, int) else dim.value for dim in shape]


def _merged(found: list[int | str | None], declared: ir.Shape | None) -> list[int | str | None]:
    """What was found, completed by declared dimensions where inference knows nothing."""
    known = _plain(declared)
    if known is None or len(known) != len(found):
        return found
    pairs = zip(found, known, strict=True)
    return [new if isinstance(new, int) else old or new for new, old in pairs]
