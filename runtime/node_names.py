"""Gives each node of a graph a name of its own: ONNX Runtime refuses graphs where two share one."""

from __future__ import annotations

from collections.abc import Iterator

import onnx


def separate_names(proto: onnx.ModelProto) -> bool:
    """Rename nodes, in place, that have the name of an earlier one of their graph.

    The ONNX specification says that names of nodes are unique or empty, but its checker accepts
    others and some exporters write them.

    Returns:
        Whether anything was renamed.
    """
    renamed = False
    for graph in _graphs(proto):
        names = {node.name for node in graph.node}
        seen: set[str] = set()
        for node in graph.node:
            if node.name and node.name in seen:
                node.name = _free_name(node.name, names)
                names.add(node.name)
                renamed = True
            seen.add(node.name)
    return renamed


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    pending: list[onnx.GraphProto | onnx.FunctionProto] = [proto.graph, *proto.functions]
    while pending:
        graph = pending.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                pending += [each for each in (attribute.g, *attribute.graphs) if each.node]


def _free_name(name: str, taken: set[str]) -> str:
    number = 2
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"
