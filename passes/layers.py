"""Which layer of its framework a node belongs to: ``onnxfold.layer`` in its metadata."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

LAYER_KEY = "onnxfold.layer"
"""Metadata key: the layer as its framework calls it, its kind in brackets: ``dense_1 (Dense)``."""


def layer_of(node: ir.Node) -> str:
    """The layer that ``node`` belongs to; empty where nobody has said."""
    return node.metadata_props.get(LAYER_KEY, "")


def path_of(layer: str) -> str:
    """A layer's name without its kind: ``dense_1``."""
    return layer.partition(" (")[0]


def record_layers(model: ir.Model, layers: Mapping[str, str]) -> None:
    """Write into the nodes of ``model`` which layers they belong to.

    Args:
        model: As an exporter wrote it; changed in place.
        layers: Names of tensors, to the layers that compute them.
    """
    for node in model.graph:
        found = (layers.get(each.name or "", "") for each in node.outputs)
        layer = next(filter(None, found), "")
        if layer:
            node.metadata_props[LAYER_KEY] = layer
