"""Where a node comes from: ``onnxfold.pass`` and ``onnxfold.from`` in its metadata."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

PASS_KEY = "onnxfold.pass"
"""Metadata key: comma-separated names of the passes that made the node."""
FROM_KEY = "onnxfold.from"
"""Metadata key: newline-separated names of the original nodes it computes the work of."""

_MAX_SOURCES = 16  # a chain of thousands of merged nodes must not grow a list of thousands


def node_name(node: ir.Node) -> str:
    """The node's name, or its first output's where it has none."""
    return node.name or next((output.name for output in node.outputs if output.name), "") or ""


def original_names(node: ir.Node) -> list[str]:
    """Names of the nodes of the original model whose work ``node`` does."""
    recorded = node.metadata_props.get(FROM_KEY)
    return recorded.split("\n") if recorded else [node_name(node)]


def record_provenance(node: ir.Node, pass_name: str, sources: Iterable[ir.Node]) -> None:
    """Write into ``node`` what it was derived from, and merge the sources' other metadata.

    Where sources disagree about a metadata key, the first one wins.
    """
    passes: dict[str, None] = {}
    origins: dict[str, None] = {}
    for source in sources:
        passes.update(
            dict.fromkeys(filter(None, source.metadata_props.get(PASS_KEY, "").split(",")))
        )
        origins.update(dict.fromkeys(filter(None, original_names(source))))
        for key, value in source.metadata_props.items():
            node.metadata_props.setdefault(key, value)
        node.doc_string = node.doc_string or source.doc_string
    passes[pass_name] = None
    node.metadata_props[PASS_KEY] = ",".join(passes)
    node.metadata_props[FROM_KEY] = "\n".join(list(origins)[:_MAX_SOURCES])
