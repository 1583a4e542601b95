"""infer-shapes: write down the types and shapes that follow from the inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import onnx
import onnx.shape_inference
import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.skeleton import skeleton

_Dim: TypeAlias = int | str | None
_TensorType: TypeAlias = tuple[ir.DataType, list[_Dim] | None]
"""Element type, and the dimensions where the rank is known."""


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
    return [new if isinstance(new, int) else old or new for new, old in pairs]
