"""TensorFlow.js: a layers model is one of Keras 2, a graph model a GraphDef and its weights."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxfold.runtime.export.workers.frozen_graph import export_graph
from onnxfold.runtime.export.workers.keras import export_keras
from onnxfold.runtime.export.workers.protocol import Answer, Array, FrontEndError, Request

_FUSED = {"_FusedConv2D": "Conv2D", "_FusedMatMul": "MatMul", "FusedDepthwiseConv2dNative": ""}
_CARRIED = ("T", "strides", "padding", "data_format", "dilations", "transpose_a", "transpose_b")
_ACTIVATIONS = frozenset({"Relu", "Relu6", "Elu", "LeakyRelu", "Sigmoid", "Tanh"})


def export(request: Request, folder: Path) -> Answer:
    """Put topology and weights together again, and export what they make."""
    path = Path(request.path)
    document = json.loads(path.read_text(encoding="utf-8"))
    weights = read_weights(document["weightsManifest"], path.parent)
    if request.kind == "tfjs-layers":
        return export_keras(_keras(document["modelTopology"], weights), request, folder)
    return export_graph(_graph(document["modelTopology"], weights), request, folder)


def read_weights(manifest: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Array]:
    """The weights of the shards that ``manifest`` lists, by name.

    Raises:
        FrontEndError: A shard is missing or too short, or a type is unknown.
    """
    found: dict[str, Array] = {}
    for group in manifest:
        try:
            content = b"".join((folder / name).read_bytes() for name in group["paths"])
        except OSError as error:
            raise FrontEndError(f"a file of weights is missing: {error.filename}") from error
        place = 0
        for entry in group["weights"]:
            array, size = _read_array(entry, content[place:])
            found[entry["name"]] = array
            place += size
    return found


def _read_array(entry: Mapping[str, Any], content: bytes) -> tuple[Array, int]:
    quantization = entry.get("quantization")
    stored = quantization["dtype"] if quantization else entry["dtype"]
    try:
        dtype = np.dtype("uint8" if stored == "bool" else stored)
    except TypeError as error:
        raise FrontEndError(f"weight '{entry['name']}' is of type {stored}") from error
    count = int(np.prod(entry["shape"], dtype=np.int64))
    size = count * dtype.itemsize
    if len(content) < size:
        raise FrontEndError(f"the file of weights ends inside '{entry['name']}'")
    shape: list[int] = entry["shape"]
    array: Array = np.frombuffer(content[:size], dtype).reshape(shape)
    if quantization and "scale" in quantization:
        array = array * quantization["scale"] + quantization["min"]
    return array.astype(entry["dtype"]), size


def _keras(topology: Mapping[str, Any], weights: Mapping[str, Array]) -> Any:
    keras: Any = importlib.import_module("tf_keras")
    config = topology.get("model_config", topology)
    try:
        model = keras.models.model_from_json(json.dumps(config))
    except (ValueError, TypeError, KeyError) as error:
        raise FrontEndError(f"Keras cannot build it: {error}") from error
    for variable in model.weights:
        name = variable.name.partition(":")[0]
        if name not in weights:
            raise FrontEndError(f"the files hold no weight '{name}'")
        variable.assign(weights[name])
    return model


def _graph(topology: Mapping[str, Any], weights: Mapping[str, Array]) -> Any:
    tf: Any = importlib.import_module("tensorflow")
    json_format: Any = importlib.import_module("google.protobuf.json_format")
    graph = tf.compat.v1.GraphDef()
    try:
        json_format.ParseDict(dict(topology), graph, ignore_unknown_fields=True)
    except json_format.ParseError as error:
        raise FrontEndError(f"its topology is no GraphDef: {error}") from error
    for node in graph.node:
        if node.op == "Const" and node.name in weights:
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(weights[node.name]))
    return _unfused(tf, graph)


def _unfused(tf: Any, graph: Any) -> Any:
    """``graph`` with fused operators, which no exporter knows, as the plain ones in a row."""
    plain = tf.compat.v1.GraphDef()
    plain.versions.CopyFrom(graph.versions)
    for node in graph.node:
        if node.op in _FUSED:
            plain.node.extend(_parts(tf, node))
        else:
            plain.node.add().CopyFrom(node)
    return plain


def _parts(tf: Any, node: Any) -> list[Any]:
    fused = [name.decode() for name in node.attr["fused_ops"].list.s]
    kind = _FUSED[node.op] or "DepthwiseConv2dNative"
    unknown = [name for name in fused if name not in ("BiasAdd", *_ACTIVATIONS)]
    if unknown:
        raise FrontEndError(f"'{node.name}' fuses {unknown[0]}, which is unknown", "unsupported")
    first = tf.compat.v1.NodeDef(name=f"{node.name}/{kind}", op=kind, input=node.input[:2])
    for key in (
        "T",
        "strides",
        "padding",
        "data_format",
        "dilations",
        "transpose_a",
        "transpose_b",
    ):
        if key in node.attr:
            first.attr[key].CopyFrom(node.attr[key])
    parts, biases = [first], iter(node.input[2:])
    for name in fused:
        inputs = [parts[-1].name] + ([next(biases)] if name == "BiasAdd" else [])
        part = tf.compat.v1.NodeDef(name=f"{node.name}/{name}", op=name, input=inputs)
        part.attr["T"].CopyFrom(node.attr["T"])
        if name == "LeakyRelu":
            part.attr["alpha"].CopyFrom(node.attr["leakyrelu_alpha"])
        parts.append(part)
    # What reads the fused operator reads the last of its parts.
    parts[-1].name = node.name
    return parts
