"""Cuts a model at values: they are fed instead of computed, and whatever is asked for is output."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import onnx_ir as ir

from onnxfold.passes.fold.wants import commutes
from onnxfold.passes.walk import iterate_graphs, nested_graphs


def keep_outputs(model: ir.Model, names: Iterable[str]) -> ir.Model:
    """A copy of ``model`` that outputs exactly the values ``names``, without what they don't need.

    Its inputs stay as they are.
    """
    copy = model.clone()
    by_name = named_values(copy.graph)
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(by_name[name] for name in names)
    _remove_dead(copy.graph)
    return copy


def cut_at(
    model: ir.Model, targets: Collection[str], borders: Mapping[str, ir.TypeAndShape]
) -> tuple[ir.Model, dict[str, str]]:
    """All regions of ``model`` side by side: each of ``targets`` computed from fed ``borders``.

    Args:
        model: Not modified.
        targets: Names of computed values of the main graph.
        borders: Values that are fed wherever something reads them, with type and shape.

    Returns:
        The model of the regions, and the name of its output for each target.
    """
    cut = model.clone()
    graph = cut.graph
    by_name = named_values(graph)
    graph.outputs.clear()
    for name, known in borders.items():
        computed = by_name[name]
        if computed.is_graph_input():
            continue
        given = ir.Value(name=name, type=known.type, shape=known.shape)
        computed.replace_all_uses_with(given, replace_graph_outputs=True)
        computed.name = _unused(f"{name}_computed", by_name)
        graph.inputs.append(given)
    graph.outputs.extend(by_name[name] for name in targets)
    _remove_dead(graph)
    for value in [each for each in graph.inputs if not each.uses()]:
        graph.inputs.remove(value)
    return cut, {name: by_name[name].name or "" for name in targets}


def region_inputs(graph: ir.Graph, targets: Iterable[str], borders: Collection[str]) -> set[str]:
    """The ``borders`` nearest upstream of ``targets``: what their regions are fed with."""
    producers = {value.name: node for node in graph for value in node.outputs}
    found: set[str] = set()
    seen: set[ir.Node] = set()
    waiting = [producers[name] for name in targets]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        for value in values_read(node, graph):
            if value.name in borders:
                found.add(value.name or "")
            elif value.name in producers:
                waiting.append(producers[value.name])
    return found


def named_values(graph: ir.Graph) -> dict[str, ir.Value]:
    """Inputs and computed values of ``graph`` by name."""
    computed = [value for node in graph for value in node.outputs if value.name]
    return {value.name or "": value for value in (*graph.inputs, *computed)}


def values_read(node: ir.Node, graph: ir.Graph) -> list[ir.Value]:
    """The values of ``graph`` that ``node`` reads, those its bodies capture included."""
    bodies = [each for body in iterate_graphs(node) for each in (body, *nested_graphs(body))]
    inner = [value for body in bodies for each in body for value in each.inputs]
    captured = [value for body in bodies for value in body.outputs]
    reads = [*node.inputs, *inner, *captured]
    return [value for value in reads if value is not None and value.graph is graph]


def is_only_quantized(value: ir.Value) -> bool:
    """Whether a computed real number is seen through QuantizeLinear alone.

    At once, or behind ops that do the same to codes: Max and Reshape, say. Where its operands were
    rounded before, it differs from the original's without anything that is seen being wrong: the
    codes behind it are what is compared.

    What the bodies of an If dequantize is not meant: those are codes, rounded inside where nothing
    is compared. One of them may be off by one, as any may, and where they are rounded again to
    finer ones, that is two of those.
    """
    producer = value.producer()
    if producer is None or value.dtype != ir.DataType.FLOAT:
        return False
    if producer.op_type == "If" and dequantizing_nodes(value):
        return False
    waiting, seen = [value], {value}
    while waiting:
        current = waiting.pop()
        if current.is_graph_output() or not current.uses():
            return False
        for node, index in current.uses():
            if node.op_type == "QuantizeLinear":
                continue
            if not commutes(node, index):
                return False
            waiting.extend(each for each in node.outputs if each not in seen)
            seen.update(node.outputs)
    return True


def dequantizing_nodes(value: ir.Value) -> list[ir.Node]:
    """The DequantizeLinear that computes ``value``, or those of the bodies of an If that does.

    Empty where it, or one of the bodies, does not end in one.
    """
    node = value.producer()
    if node is None or node.op_type == "DequantizeLinear":
        return [] if node is None else [node]
    if node.op_type != "If" or node.domain:
        return []
    index = node.outputs.index(value)
    found = [dequantizing_nodes(body.outputs[index]) for body in iterate_graphs(node)]
    return [each for body in found for each in body] if all(found) else []


def _remove_dead(graph: ir.Graph) -> None:
    for node in reversed(tuple(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in tuple(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[name]


def _unused(name: str, taken: Collection[str]) -> str:
    while name in taken:
        name += "_"
    return name
