"""Float operators between codes: what a graph that should be integer still computes in float."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

import onnx_ir as ir

from onnxfold.passes.op_kinds import CODE_TYPES, FLOAT_TYPES, NodeKinds, OpKind, node_kinds
from onnxfold.passes.walk import all_nodes, iterate_graphs

_NOT_COUNTED = (OpKind.CONSTANT, OpKind.SHAPE, OpKind.CONTROL)

Steps = dict[ir.Node, list[ir.Node]]


def float_ops_between(model: ir.Model, *, strict: bool = False) -> list[ir.Node]:
    """The float operators strictly between the first QuantizeLinear and the last DequantizeLinear.

    Those that something computed from codes reaches and that reach something read as codes. Codes
    come out of QuantizeLinear and into the graph as narrow integer inputs; they are read by
    DequantizeLinear and leave as narrow integer outputs. Quantizers inside count as well.

    Args:
        model: Types must be known: run ``infer-shapes`` before.
        strict: Also report operators that read constant floats, such as QLinearConv its scales.

    Returns:
        The nodes, outer graphs before inner ones.
    """
    found = node_kinds(model)
    forwards, backwards = _steps(model)
    quantizers, dequantizers = _edges(found, OpKind.QUANTIZE), _edges(found, OpKind.DEQUANTIZE)
    entered = _reached(quantizers, _readers(model.graph.inputs), forwards)
    left = _reached(dequantizers, _producers(model.graph.outputs), backwards)
    is_float = _reads_floats if strict else _touches_floats(found)
    return [
        node
        for node, kind in found.kinds.items()
        if node in entered and node in left and kind not in _NOT_COUNTED and is_float(node)
    ]


def flow_in(node: ir.Node, model: ir.Model) -> Iterator[tuple[ir.Value, ir.Value]]:
    """What a control-flow node or call hands on, as pairs of one value outside and one inside.

    A Loop's first two inputs are its count and condition; its body begins with two likewise.
    """
    function = model.functions.get(node.op_identifier())
    if function is not None:
        yield from _paired(node.inputs, function.inputs)
        yield from _paired(node.outputs, function.outputs)
        return
    for body in iterate_graphs(node):
        if node.op_type in ("Loop", "Scan"):
            yield from _paired(node.inputs, body.inputs)
        results = body.outputs[1:] if node.op_type == "Loop" else body.outputs
        yield from _paired(node.outputs, results)


def _paired(
    outside: Iterable[ir.Value | None], inside: Iterable[ir.Value | None]
) -> Iterator[tuple[ir.Value, ir.Value]]:
    for outer, inner in zip(outside, inside, strict=False):
        if outer is not None and inner is not None:
            yield outer, inner


def _steps(model: ir.Model) -> tuple[Steps, Steps]:
    """Which nodes read what a node makes, and the other way round; through bodies and calls."""
    forwards: Steps = defaultdict(list)
    backwards: Steps = defaultdict(list)

    def connect(producer: ir.Node | None, consumers: Iterable[ir.Node]) -> None:
        for consumer in consumers if producer is not None else ():
            assert producer is not None
            forwards[producer].append(consumer)
            backwards[consumer].append(producer)

    for node in all_nodes(model):
        for value in node.inputs:
            connect(None if value is None else value.producer(), [node])
        for outer, inner in flow_in(node, model):
            if inner.is_graph_output():
                connect(inner.producer(), [node])
            connect(outer.producer(), [use.node for use in inner.uses()])
    return forwards, backwards


def _reached(starts: Iterable[ir.Node], inside: Iterable[ir.Node], steps: Steps) -> set[ir.Node]:
    """Everything behind ``starts``; ``inside`` and everything behind it."""
    reached: set[ir.Node] = set()
    waiting = [*inside, *(each for start in starts for each in steps.get(start, ()))]
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting += steps.get(node, ())
    return reached


def _edges(found: NodeKinds, edge: OpKind) -> list[ir.Node]:
    """The QuantizeLinear or DequantizeLinear nodes of what is computed."""
    return [
        node
        for node, kind in found.kinds.items()
        if kind is edge and node.inputs[0] not in found.known
    ]


def _readers(values: Iterable[ir.Value]) -> list[ir.Node]:
    return [use.node for value in values if value.dtype in CODE_TYPES for use in value.uses()]


def _producers(values: Iterable[ir.Value]) -> list[ir.Node]:
    found = [value.producer() for value in values if value.dtype in CODE_TYPES]
    return [node for node in found if node is not None]


def _touches_floats(found: NodeKinds) -> Callable[[ir.Node], bool]:
    return lambda node: bool(found.float_inputs(node) or found.float_outputs(node))


def _reads_floats(node: ir.Node) -> bool:
    return any(
        value is not None and value.dtype in FLOAT_TYPES for value in (*node.inputs, *node.outputs)
    )
