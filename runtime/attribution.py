"""Which nodes of a model each node of the graph that ONNX Runtime executes does the work of."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx
import onnx_ir as ir

from onnxfold.passes.provenance import node_name
from onnxfold.passes.walk import all_nodes

_LAYOUT = re.compile(r"(_nchwc|_token_\d+)$")
"""What ONNX Runtime appends to names of nodes and outputs when it changes a node's layout."""

Coverage = Mapping[str, tuple[str, ...]]
"""Name of an executed node -> names of the model's nodes whose work it does."""


def coverage(model: ir.Model, executed: onnx.GraphProto) -> Coverage:
    """Match an optimized graph with the model it was made of, by names of values and nodes.

    An executed node does the work of everything in the model between the values it computes and
    those that other executed nodes compute. One that the model does not know (a change of layout,
    a part of an inlined function) shares the work of the nodes that read it.
    Nodes without a name are keyed by ``unnamed``.
    """
    producers = {value.name: node for node in all_nodes(model) for value in node.outputs}
    results = {node_name(node): _output_names(node) for node in all_nodes(model)}
    anchors = _anchors(_named(_nodes(executed)), producers, results)
    cuts = {name for names in anchors.values() for name in names}
    cones = {name: _cone(name, cuts, producers, model) for name in cuts}
    return {
        node: tuple(dict.fromkeys(each for name in names for each in cones[name]))
        for node, names in anchors.items()
    }


def unnamed(op_type: str, position: int) -> str:
    """The key of the ``position``-th (from 0) executed node of that kind that has no name.

    Some versions of ONNX Runtime leave the parts of an operator they expand without names.
    """
    return f"#{position} {op_type}"


def _named(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    seen: Counter[str] = Counter()
    found: list[onnx.NodeProto] = []
    for node in nodes:
        if not node.name:
            node.name = unnamed(node.op_type, seen[node.op_type])
            seen[node.op_type] += 1
        found.append(node)
    return found


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _nodes(body)


def _anchors(
    nodes: Sequence[onnx.NodeProto],
    producers: Mapping[str | None, ir.Node],
    results: Mapping[str, Sequence[str]],
) -> dict[str, tuple[str, ...]]:
    """For each executed node the values of the model it computes, or its readers do."""
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in nodes:
        for name in node.input:
            readers[name].append(node)
    found: dict[str, tuple[str, ...]] = {}
    for node in reversed(nodes):
        name = _LAYOUT.sub("", node.name)
        own = [each for each in (*node.output, name) if each and each in producers]
        known = dict.fromkeys([*own, *results.get(name, ())])
        if not known:
            behind = [reader for name in node.output for reader in readers[name]]
            known = dict.fromkeys(each for reader in behind for each in found.get(reader.name, ()))
        # Changes of layout share one name.
        found[node.name] = tuple(dict.fromkeys([*found.get(node.name, ()), *known]))
    return found


def _output_names(node: ir.Node) -> list[str]:
    return [value.name for value in node.outputs if value.name]


def _cone(
    name: str, cuts: set[str], producers: Mapping[str | None, ir.Node], model: ir.Model
) -> list[str]:
    """The nodes behind value ``name`` up to the values in ``cuts``; calls with their bodies."""
    reached: dict[ir.Node, None] = {}
    waiting = [producers[name]]
    while waiting:
        node = waiting.pop()
        if node in reached:
            continue
        reached[node] = None
        outside = [each.name for each in node.inputs if each is not None and each.name not in cuts]
        waiting += [producers[each] for each in outside if each in producers]
    return list(_names(reached, model))


def _names(nodes: Iterable[ir.Node], model: ir.Model) -> Iterator[str]:
    for node in nodes:
        yield node_name(node)
        function = model.functions.get(node.op_identifier())
        if function is not None:
            yield from _names(function.graph, model)
