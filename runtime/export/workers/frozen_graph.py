"""Frozen graphs of TensorFlow 1: a GraphDef whose variables are constants."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxfold.runtime.export.workers.protocol import Answer, FrontEndError, Request
from onnxfold.runtime.export.workers.tf_functions import export_function, in_list

_NO_OUTPUTS = frozenset({"Assert", "Const", "NoOp", "Placeholder"})
_VARIABLES = frozenset({"Variable", "VariableV2", "VarHandleOp"})


def export(request: Request, folder: Path) -> Answer:
    """Read the graph, take what nothing feeds for inputs and what nobody reads for outputs."""
    tf: Any = importlib.import_module("tensorflow")
    graph = tf.compat.v1.GraphDef()
    try:
        graph.ParseFromString(Path(request.path).read_bytes())
    except importlib.import_module("google.protobuf.message").DecodeError as error:
        raise FrontEndError(f"it is no GraphDef: {error}") from error
    return export_graph(graph, request, folder)


def export_graph(graph: Any, request: Request, folder: Path) -> Answer:
    """Export a GraphDef without variables.

    Raises:
        FrontEndError: It has variables, no inputs, or no outputs.
    """
    tf: Any = importlib.import_module("tensorflow")
    variables = [node.name for node in graph.node if node.op in _VARIABLES]
    if variables:
        raise FrontEndError(
            f"it has variables ('{variables[0]}'), whose values are not in the file: freeze the "
            "graph, or export a SavedModel"
        )
    inputs = [node.name for node in graph.node if node.op == "Placeholder"]
    outputs = request.options.get("graph_outputs") or _unread(graph)
    if not inputs or not outputs:
        raise FrontEndError("it has no placeholder to feed, or no result")
    function = _function(tf, graph, inputs, outputs)
    signature = [
        tf.TensorSpec(tensor.shape, tensor.dtype, name=name)
        for name, tensor in zip(inputs, function.inputs, strict=True)
    ]

    def call(*arrays: Any) -> Any:
        return dict(zip(outputs, in_list(function(*arrays)), strict=True))

    return export_function(call, signature, request, folder)


def _function(tf: Any, graph: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    def body() -> None:
        tf.graph_util.import_graph_def(graph, name="")

    try:
        wrapped = tf.compat.v1.wrap_function(body, [])
        element = wrapped.graph.as_graph_element
        return wrapped.prune(
            [element(f"{name}:0") for name in inputs], [element(f"{name}:0") for name in outputs]
        )
    except (ValueError, KeyError, tf.errors.NotFoundError) as error:
        raise FrontEndError(f"TensorFlow cannot read the graph: {error}") from error


def _unread(graph: Any) -> list[str]:
    """Nodes that no other node reads, and that give something."""
    read = {name.lstrip("^").partition(":")[0] for node in graph.node for name in node.input}
    return [n.name for n in graph.node if n.name not in read and n.op not in _NO_OUTPUTS]
