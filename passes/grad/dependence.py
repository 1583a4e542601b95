"""What depends on what inside one graph, as far as a gradient can flow."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from onnxfold.passes.grad.quantized_paths import hidden_sources
from onnxfold.passes.grad.vjp import FLAT, key_of
from onnxfold.passes.walk import iterate_graphs, nested_graphs


def read_besides(node: ir.Node) -> tuple[ir.Value, ...]:
    """Values that ``node`` depends on although they are no inputs, each once.

    Those are values of outer graphs that its bodies read, and what codes were rounded from.
    """
    if not node.attributes.data:
        return hidden_sources(node)
    found: dict[ir.Value, None] = dict.fromkeys(hidden_sources(node))
    for body in iterate_graphs(node):
        graphs = dict.fromkeys([body, *nested_graphs(body)])
        for graph in graphs:
            read = [value for inner in graph for value in inner.inputs] + list(graph.outputs)
            found.update((v, None) for v in read if v is not None and v.graph not in graphs)
    return tuple(found)


def depends_on(node: ir.Node, values: frozenset[ir.Value] | set[ir.Value]) -> bool:
    """Whether ``node`` reads one of ``values``."""
    return any(value in values for value in node.inputs) or any(
        value in values for value in read_besides(node)
    )


def real_or_unknown(value: ir.Value) -> bool:
    """Whether a gradient may flow through ``value``."""
    return value.dtype is None or value.dtype.is_floating_point()


def reached_from(values: Iterable[ir.Value], nodes: Iterable[ir.Node]) -> set[ir.Value]:
    """``values``, and what ``nodes`` (producers first) compute from them, as gradients flow."""
    reached = set(values)
    for node in nodes:
        if key_of(node) not in FLAT and depends_on(node, reached):
            reached.update(output for output in node.outputs if real_or_unknown(output))
    return reached
