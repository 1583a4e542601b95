"""Walking a model: every graph, body and local function, in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


def iterate_graphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The bodies directly held by ``node`` (If branches, Loop and Scan bodies)."""
    # The views of a UserDict are several times slower than those of the dict inside.
    for attribute in node.attributes.data.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def all_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Every graph: the main one, local functions, and all nested bodies; outer before inner."""
    roots = [model.graph, *(function.graph for function in model.functions.values())]
    for root in roots:
        yield root
        yield from nested_graphs(root)


def nested_graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    """The bodies below ``graph``, at any depth; outer before inner."""
    for node in graph:
        if not node.attributes.data:
            continue
        for body in iterate_graphs(node):
            yield body
            yield from nested_graphs(body)


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node of every graph."""
    for graph in all_graphs(model):
        yield from graph


class Scopes:
    """Which node holds each body, and which opsets each graph is read under.

    Built once for a model; ``add`` follows a node that is inserted with bodies of its own.
    """

    def __init__(self, model: ir.Model) -> None:
        self._holder: dict[ir.Graph, ir.Node] = {}
        self._functions = {function.graph for function in model.functions.values()}
        self._model = model
        for node in all_nodes(model):
            self.add(node)

    def add(self, node: ir.Node) -> None:
        """Remember the bodies that ``node`` holds, at any depth."""
        for body in iterate_graphs(node):
            self._holder[body] = node
            for inner in body:
                self.add(inner)

    def enclose(self, body: ir.Graph, node: ir.Node) -> None:
        """Read ``body``, which no node holds yet, as if one that stands beside ``node`` did."""
        self._holder[body] = node

    def holder(self, graph: ir.Graph) -> ir.Node | None:
        """The node that holds ``graph`` as a body; None for the main graph and for functions."""
        return self._holder.get(graph)

    def root(self, graph: ir.Graph) -> ir.Graph:
        """The main graph or function graph that ``graph`` is nested in (or is)."""
        while (node := self._holder.get(graph)) is not None and node.graph is not None:
            graph = node.graph
        return graph

    def in_function(self, graph: ir.Graph) -> bool:
        """Whether ``graph`` is the graph of a local function, or nested in one."""
        return self.root(graph) in self._functions

    def opset(self, graph: ir.Graph, domain: str = "") -> int:
        """The opset version that ``graph`` is read under, for ``domain``; 0 if not imported."""
        return self.root(graph).opset_imports.get(domain, 0)


def use_count(value: ir.Value) -> int:
    """How many node inputs read ``value``, in constant time."""
    # uses() copies: quadratic where thousands of nodes share one scale.
    return len(value._uses)  # pyright: ignore[reportPrivateUsage]


def label(node: ir.Node) -> str:
    """``Conv 'name'``, for messages; the first output stands in for a missing name."""
    name = node.name or next((output.name for output in node.outputs if output.name), None)
    op_type = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return f"{op_type} '{name}'" if name else f"{op_type} (unnamed)"
