"""What a TensorFlow graph computes inside: the tensors that have the same names in ONNX."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from onnxfold.runtime.export.workers.protocol import Feed
from onnxfold.runtime.export.workers.tf2onnx_models import load_tf2onnx

_CALLS = re.compile(r"^(?:(?:Stateful)?PartitionedCall(?:_\d+)?/)+")
_TENSOR = re.compile(r"^[^:]+:\d+$")
_COUNTED = re.compile(r"_\d+$")
_COUNTER, _PORT = re.compile(r"__\d+(?=/|:|$)"), re.compile(r":\d+$")


def values_inside(
    concrete: Any, inputs: Sequence[str], feeds: Sequence[Feed], tensors: Iterable[str]
) -> list[Feed]:
    """Run the very graph that tf2onnx converts, and read tensors of it.

    Args:
        concrete: A concrete function of TensorFlow.
        inputs: Names of its arguments.
        feeds: What to feed, by those names.
        tensors: What is asked for, as ``scope/op:0``; what the graph does not have is left out.

    Returns:
        A dict of arrays for each feed.
    """
    tf: Any = importlib.import_module("tensorflow")
    loader: Any = load_tf2onnx().tf_loader
    given = {name: tensor.name for name, tensor in zip(inputs, concrete.inputs, strict=False)}
    outputs = [each.name for each in concrete.outputs]
    with tf.device("/cpu:0"):
        graph = loader.from_function(concrete, list(given.values()), outputs)
    known = {node.name: node.op for node in graph.node}
    wanted = [
        name
        for name in dict.fromkeys(tensors)
        if _TENSOR.match(name) and known.get(_node(name), "Const") not in ("Const", "Placeholder")
    ]
    fed = {name: tensor for name, tensor in given.items() if _node(tensor) in known}
    with tf.Graph().as_default() as own, tf.compat.v1.Session(graph=own) as session:
        tf.import_graph_def(graph, name="")
        fetched = {name: own.as_graph_element(name) for name in wanted}
        fetched = {name: each for name, each in fetched.items() if each.dtype.is_numpy_compatible}
        return [
            session.run(fetched, {tensor: feed[name] for name, tensor in fed.items()})
            for feed in feeds
        ]


def scopes_of(names: Iterable[str]) -> dict[str, str]:
    """The operators of TensorFlow that tensors come from, as paths without the calls around."""
    found = {name: _CALLS.sub("", _PORT.sub("", _COUNTER.sub("", name))) for name in names}
    return {name: scope for name, scope in found.items() if "/" in scope}


def keras_layers_of(model: Any, names: Iterable[str]) -> dict[str, str]:
    """The Keras layers that tensors come from, as ``encoder/dense_1 (Dense)``.

    Args:
        model: A Keras model; it numbers its scopes, so that ``dense_1`` may lie in ``dense_1_2``.
        names: Names of tensors of TensorFlow.
    """
    found = {name: _layer_at(model, scope.split("/")) for name, scope in scopes_of(names).items()}
    return {name: layer for name, layer in found.items() if layer}


def _layer_at(model: Any, scope: Sequence[str]) -> str:
    path: list[str] = []
    layer, place = model, 1 if _matches(scope[0], {str(model.name): model}) else 0
    while place < len(scope):
        children = _children(layer)
        name = _matches(scope[place], children)
        if name is None:
            break
        layer, place = children[name], place + 1
        path.append(name)
    return f"{'/'.join(path)} ({type(layer).__name__})" if path else ""


def _matches(component: str, layers: Mapping[str, Any]) -> str | None:
    """The layer that a component of a scope belongs to, which may have a number behind it."""
    for name in (component, _COUNTED.sub("", component)):
        if name in layers:
            return name
    return None


def _children(layer: Any) -> dict[str, Any]:
    layers: Callable[..., Any] | Sequence[Any] = getattr(layer, "layers", None) or getattr(
        layer, "_layers", ()
    )
    return {} if callable(layers) else {str(each.name): each for each in layers}


def _node(tensor: str) -> str:
    return tensor.partition(":")[0]
