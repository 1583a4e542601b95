"""Sparse constants as dense ones: passes know only dense tensors."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from onnxfold.passes.constants import Array
from onnxfold.passes.errors import InvalidModelError

_MAX_DENSE_BYTES = 1 << 28


def densify(model: onnx.ModelProto, folder: Path | None, label: str) -> None:
    """Replace sparse initializers and the sparse values of Constant nodes, in place.

    Args:
        model: The model.
        folder: Where external data lies.
        label: Name of the model for messages.

    Raises:
        InvalidModelError: A sparse tensor is malformed or too large as a dense one, or is the
            attribute of an operator other than Constant.
    """
    _densify_graph(model.graph, folder, label)
    for function in model.functions:
        _densify_nodes(function.node, folder, label)


def _densify_graph(graph: onnx.GraphProto, folder: Path | None, label: str) -> None:
    for sparse in graph.sparse_initializer:
        dense = _dense(sparse, folder, label)
        graph.initializer.append(numpy_helper.from_array(dense, sparse.values.name))
    del graph.sparse_initializer[:]
    _densify_nodes(graph.node, folder, label)


def _densify_nodes(nodes: Iterable[onnx.NodeProto], folder: Path | None, label: str) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _densify_graph(attribute.g, folder, label)
            for graph in attribute.graphs:
                _densify_graph(graph, folder, label)
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                _densify_attribute(node, attribute, folder, label)


def _densify_attribute(
    node: onnx.NodeProto, attribute: onnx.AttributeProto, folder: Path | None, label: str
) -> None:
    if node.op_type != "Constant" or node.domain or attribute.name != "sparse_value":
        raise InvalidModelError(
            f"{label}: the sparse attribute '{attribute.name}' of {node.op_type} '{node.name}' "
            "is not supported"
        )
    dense = _dense(attribute.sparse_tensor, folder, label)
    attribute.Clear()
    attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
    attribute.t.CopyFrom(numpy_helper.from_array(dense))


def _dense(sparse: onnx.SparseTensorProto, folder: Path | None, label: str) -> Array:
    name = f"{label}: sparse tensor '{sparse.values.name}'"
    base = str(folder or "")
    shape = tuple(sparse.dims)
    values = numpy_helper.to_array(sparse.values, base)
    indices = numpy_helper.to_array(sparse.indices, base)
    if any(dim < 0 for dim in shape) or prod(shape) * values.itemsize > _MAX_DENSE_BYTES:
        raise InvalidModelError(f"{name} of shape {list(shape)} is too large to be made dense")
    flat = _flat_indices(indices, shape)
    if flat is None or flat.shape != values.shape:
        raise InvalidModelError(f"{name} has indices that do not fit its shape {list(shape)}")
    dense = np.zeros(prod(shape), values.dtype)
    dense[flat] = values
    return dense.reshape(shape)


def _flat_indices(indices: Array, shape: tuple[int, ...]) -> Array | None:
    """Linear indices [NNZ], from linear ones or from coordinates [NNZ, rank]."""
    if indices.ndim == 2:
        fits = indices.shape[1] == len(shape)
        if not fits or np.any(indices < 0) or np.any(indices >= np.array(shape)):
            return None
        strides = np.array([prod(shape[axis + 1 :]) for axis in range(len(shape))], np.int64)
        return np.asarray(indices @ strides)
    if indices.ndim != 1 or np.any(indices < 0) or np.any(indices >= prod(shape)):
        return None
    return indices
