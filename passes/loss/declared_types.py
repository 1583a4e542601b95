"""What a model declares, as text that fits into metadata: types, and the order of initializers."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator

import onnx
import onnx_ir as ir

from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import all_graphs


def declared_types(model: ir.Model) -> str:
    """What ``restore_types`` takes: types of intermediate values, and names of initializers."""
    holder = onnx.ModelProto()
    for name in model.graph.initializers:
        holder.graph.initializer.add(name=name)
    for graph in all_graphs(model):
        inner = onnx.GraphProto()
        for value in _intermediates(graph):
            if value.type is not None:
                inner.value_info.append(ir.serde.serialize_value(value))
        holder.graph.node.add().attribute.add(g=inner)
    return base64.b64encode(zlib.compress(holder.SerializeToString(), 9)).decode("ascii")


def restore_types(model: ir.Model, text: str, rewriter: Rewriter) -> None:
    """Declare again what ``declared_types`` saw, and nothing else, in its order, inside a step.

    A model that has other bodies or functions than it had is left alone.
    """
    holder = onnx.ModelProto.FromString(zlib.decompress(base64.b64decode(text)))
    graphs = list(all_graphs(model))
    if len(graphs) != len(holder.graph.node):
        return
    rewriter.order_initializers([each.name for each in holder.graph.initializer])
    for graph, node in zip(graphs, holder.graph.node, strict=True):
        known = {each.name: each for each in node.attribute[0].g.value_info}
        for value in _intermediates(graph):
            proto = known.get(value.name or "")
            found = None if proto is None else ir.serde.deserialize_value_info_proto(proto, None)
            wanted = (None, None) if found is None else (found.type, found.shape)
            if (value.type, value.shape) != wanted:
                rewriter.declare(value, *wanted)


def _intermediates(graph: ir.Graph) -> Iterator[ir.Value]:
    for node in graph:
        yield from (value for value in node.outputs if not value.is_graph_output())
