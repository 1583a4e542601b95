"""Puts the nodes of a model in an order in which values are made before they are read.

The ONNX specification asks for it and onnxruntime does not mind, so some tools (Quark, where it
corrects the scale of a pool) append nodes at the end.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator

import onnx


def sort_nodes(proto: onnx.ModelProto) -> bool:
    """Sort every graph, body and local function in place that is not in order.

    As few nodes as possible change places. A graph with a cycle is left as it is.

    Returns:
        Whether anything was moved.
    """
    moved = [_sort(graph) for graph in (proto.graph, *proto.functions)]
    return any(moved)


def _sort(graph: onnx.GraphProto | onnx.FunctionProto) -> bool:
    moved = [_sort(body) for node in graph.node for body in _bodies(node)]
    order = _order(graph)
    if order is None:
        return any(moved)
    nodes = [onnx.NodeProto() for _ in order]
    for copy, index in zip(nodes, order, strict=True):
        copy.CopyFrom(graph.node[index])
    del graph.node[:]
    graph.node.extend(nodes)
    return True


def _order(graph: onnx.GraphProto | onnx.FunctionProto) -> list[int] | None:
    """The new order of the nodes, as indices; None where they are in order, or cannot be."""
    maker = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    waits = [
        {maker[name] for name in _reads(node) if name in maker} - {index}
        for index, node in enumerate(graph.node)
    ]
    if all(before < index for index, each in enumerate(waits) for before in each):
        return None
    readers: defaultdict[int, list[int]] = defaultdict(list)
    for index, each in enumerate(waits):
        for before in each:
            readers[before].append(index)
    ready = [index for index, each in enumerate(waits) if not each]
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for reader in readers[index]:
            waits[reader].discard(index)
            if not waits[reader]:
                heapq.heappush(ready, reader)
    return order if len(order) == len(waits) else None


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """The names ``node`` reads, and all that its bodies read."""
    yield from node.input
    for body in _bodies(node):
        yield from (output.name for output in body.output)
        for inner in body.node:
            yield from _reads(inner)


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs
