"""Puts right what tf2onnx passes on as if ONNX had it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

_CONTRIB = "com.microsoft"
_STANDARD_SINCE = frozenset({"Range"})
"""What tf2onnx writes in ONNX Runtime's own domain, though ONNX has the same (since opset 11)."""


def repair(model: Any) -> None:
    """Replace operators that ONNX does not have by those that it has, in bodies too.

    Args:
        model: An ``onnx.ModelProto``, changed in place.
    """
    onnx: Any = importlib.import_module("onnx")
    for node in (node for graph in graphs_of(model.graph) for node in graph.node):
        if node.domain == _CONTRIB and node.op_type in _STANDARD_SINCE:
            node.domain = ""
    _replace_erfc(onnx, model)


def graphs_of(graph: Any) -> Iterator[Any]:
    """A graph and the bodies in it, at any depth."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                if body.node or body.output:
                    yield from graphs_of(body)


def _replace_erfc(onnx: Any, model: Any) -> None:
    """Write 1 - Erf(x) for Erfc(x), which tf2onnx passes on as if ONNX had it."""
    graphs = [graph for graph in graphs_of(model.graph) if any(map(_is_erfc, graph.node))]
    if not graphs:
        return
    types = _types_without_erfc(onnx, model)
    for graph in graphs:
        nodes = list(graph.node)
        del graph.node[:]
        for node in nodes:
            graph.node.extend(_as_erf(onnx, node, types) if _is_erfc(node) else [node])


def _is_erfc(node: Any) -> bool:
    return bool(node.op_type == "Erfc")


def _types_without_erfc(onnx: Any, model: Any) -> dict[str, int]:
    """Element types by tensor; Erf, which shape inference knows, has those of Erfc."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in (node for graph in graphs_of(copy.graph) for node in graph.node):
        if _is_erfc(node):
            node.op_type = "Erf"
    inferred = onnx.shape_inference.infer_shapes(copy)
    return {
        each.name: each.type.tensor_type.elem_type
        for graph in graphs_of(inferred.graph)
        for each in (*graph.value_info, *graph.output)
    }


def _as_erf(onnx: Any, node: Any, types: Mapping[str, int]) -> list[Any]:
    make, (source,), (result,) = onnx.helper.make_node, node.input, node.output
    one = onnx.helper.make_tensor(
        f"{result}_one", types.get(result, onnx.TensorProto.FLOAT), [], [1.0]
    )
    return [
        make("Constant", [], [one.name], name=f"{node.name}/One", value=one),
        make("Erf", [source], [f"{result}_erf"], name=f"{node.name}/Erf"),
        make("Sub", [one.name, f"{result}_erf"], [result], name=node.name),
    ]
