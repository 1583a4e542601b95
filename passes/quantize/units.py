"""Units of quantization: an operator with what is merged into it, and which are worth it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxfold.passes.constants import constant_tensor
from onnxfold.passes.quantize.roles import Role, operand_indices, role_of
from onnxfold.passes.quantize.schemes import Scheme
from onnxfold.passes.walk import iterate_graphs, nested_graphs, use_count


@dataclass(frozen=True, eq=False)
class Unit:
    """An operator to quantize, with the bias and the clamp that are computed along with it.

    Attributes:
        node: The operator.
        role: How it takes part.
        tail: Nodes after it that no Q/DQ pair separates from it (Add of a bias, Relu, Clip).
        scheme: The types of its codes.
    """

    node: ir.Node
    role: Role
    tail: tuple[ir.Node, ...] = ()
    scheme: Scheme = field(default_factory=Scheme)

    @property
    def operands(self) -> tuple[ir.Value, ...]:
        """The activations it reads."""
        values = (self.node.inputs[index] for index in operand_indices(self.node))
        return tuple(value for value in values if value is not None)

    @property
    def outputs(self) -> tuple[ir.Value, ...]:
        """What it hands on; outputs that nothing reads left out."""
        last = self.tail[-1] if self.tail else self.node
        return tuple(v for v in last.outputs if use_count(v) or v.is_graph_output())


def find_units(graph: ir.Graph, allowed: Collection[ir.Node]) -> tuple[Unit, ...]:
    """The units of the ``allowed`` operators of ``graph`` and its bodies, in the order they run."""
    units: list[Unit] = []
    absorbed: set[ir.Node] = set()
    for node in _in_order(graph):
        role = role_of(node)
        if role is None or node in absorbed or node not in allowed:
            continue
        tail = tuple(_tail(node, role))
        absorbed.update(tail)
        units.append(Unit(node, role, tail))
    return tuple(units)


def keep_regions(units: Sequence[Unit]) -> tuple[Unit, ...]:
    """Those of ``units`` that are worth it: linear operators, and what lies between them.

    Another operator is kept only if it reads from a kept unit and a kept unit reads from it, so
    that no value is quantized only to be dequantized at once.

    Args:
        units: In topological order.
    """
    produced: set[ir.Value] = set()
    fed: list[Unit] = []
    for unit in units:
        if unit.role is Role.LINEAR or any(value in produced for value in unit.operands):
            fed.append(unit)
            produced.update(unit.outputs)
    consumed: set[ir.Value] = set()
    kept: list[Unit] = []
    for unit in reversed(fed):
        if unit.role is Role.LINEAR or any(value in consumed for value in unit.outputs):
            kept.append(unit)
            consumed.update(unit.operands)
    return tuple(reversed(kept))


def float32_values(graph: ir.Graph) -> set[ir.Value]:
    """The float32 values of ``graph`` and its bodies, as declared or as their operators imply."""
    known: set[ir.Value] = set()
    for each in (graph, *nested_graphs(graph)):
        _add_float32_values(each, known)
    return known


def _in_order(graph: ir.Graph) -> Iterator[ir.Node]:
    """The nodes of ``graph`` and its bodies, what is inside a node before the node."""
    for node in graph:
        for body in iterate_graphs(node):
            yield from _in_order(body)
        yield node


def _add_float32_values(graph: ir.Graph, known: set[ir.Value]) -> None:
    """Add those of ``graph`` alone to those of the graphs around it."""
    known.update(value for value in graph.inputs if value.dtype == ir.DataType.FLOAT)
    for node in graph:
        known.update(out for out in node.outputs if out.dtype == ir.DataType.FLOAT)
        if role_of(node) is None or node.outputs[0].dtype is not None:
            continue
        # All operands of these operators have one type: one that is known tells the others.
        reads_float32 = any(node.inputs[index] in known for index in operand_indices(node))
        if reads_float32 or _has_float32_weights(node):
            known.update(node.outputs)
            known.update(v for i in operand_indices(node) if (v := node.inputs[i]) is not None)


def _has_float32_weights(node: ir.Node) -> bool:
    if role_of(node) is not Role.LINEAR:
        return False
    tensors = (constant_tensor(value) for value in node.inputs[:2])
    return any(tensor is not None and tensor.dtype == ir.DataType.FLOAT for tensor in tensors)


def _tail(node: ir.Node, role: Role) -> Iterator[ir.Node]:
    """The nodes to merge into ``node``, each the only reader of the one before."""
    if role not in (Role.LINEAR, Role.ARITHMETIC):
        return
    last = node
    reader = _only_reader(last)
    if node.op_type == "MatMul" and reader is not None and _is_bias(reader):
        yield reader
        last, reader = reader, _only_reader(reader)
    if reader is not None and role_of(reader) is Role.CLAMP and reader.inputs[0] in last.outputs:
        yield reader


def _only_reader(node: ir.Node) -> ir.Node | None:
    value = node.outputs[0]
    if use_count(value) != 1 or value.is_graph_output():
        return None
    reader = next(iter(value.uses())).node
    return reader if reader.graph is node.graph else None


def _is_bias(node: ir.Node) -> bool:
    """Whether ``node`` adds a constant that differs along the last axis only."""
    if node.op_type != "Add" or node.domain:
        return False
    tensors = [constant_tensor(value) for value in node.inputs]
    shapes = [tuple(tensor.shape.numpy()) for tensor in tensors if tensor is not None]
    return len(shapes) == 1 and math.prod(shapes[0][:-1]) == 1
