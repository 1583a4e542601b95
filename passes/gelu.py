"""Recognises a Gelu, however it is written."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxfold.passes.constants import constant_scalar
from onnxfold.passes.walk import use_count

_TOLERANCE = 1e-5


@dataclass(frozen=True, eq=False)
class Gelu:
    """x * 0.5 * (1 + erf(x / sqrt(2))).

    Attributes:
        data: x.
        last: The node that computes the result, its one output.
    """

    data: ir.Value
    last: ir.Node

    @classmethod
    def match(cls, node: ir.Node) -> Gelu | None:
        """Read the operator, or the error function in its middle; None where there is another."""
        if node.domain or not node.inputs or node.inputs[0] is None:
            return None
        if node.op_type == "Gelu":
            exact = node.attributes.get_string("approximate", "none") == "none"
            return cls(node.inputs[0], node) if exact else None
        data = _divided_by_root_2(node.inputs[0]) if node.op_type == "Erf" else None
        plus_one = None if data is None else _only_reader(node.outputs[0], "Add")
        if data is None or plus_one is None or not _has_number(plus_one, 1.0):
            return None
        last = _end(plus_one, data)
        return None if last is None else cls(data, last)


def _divided_by_root_2(value: ir.Value) -> ir.Value | None:
    """x, where ``value`` is x / sqrt(2)."""
    node = value.producer()
    if node is None or node.domain or node.op_type not in ("Div", "Mul"):
        return None
    divides = node.op_type == "Div"
    wanted = math.sqrt(2.0) if divides else math.sqrt(0.5)
    for data, number in _operands(node)[: 1 if divides else 2]:
        if _is(number, wanted):
            return data
    return None


def _end(plus_one: ir.Node, data: ir.Value) -> ir.Node | None:
    """The Mul that ends 0.5 x (1 + erf), which is multiplied in any order."""
    node, factors = plus_one, {"x": False, "half": False}
    while not all(factors.values()):
        reader = _only_reader(node.outputs[0], "Mul")
        if reader is None:
            return None
        other = next((each for each in reader.inputs if each is not node.outputs[0]), None)
        found = tuple(_parts(other, data))
        if not found or any(factors[each] for each in found):
            return None
        factors.update(dict.fromkeys(found, True))
        node = reader
    return node


def _parts(value: ir.Value | None, data: ir.Value) -> Iterator[str]:
    """Which factors of a Gelu ``value`` is: x, a half, or both; nothing where it is another."""
    node = None if value is None else value.producer()
    if value is data:
        yield "x"
    elif _is(value, 0.5):
        yield "half"
    elif (
        node is not None
        and (node.op_type, node.domain) == ("Mul", "")
        and any(each is data and _is(number, 0.5) for each, number in _operands(node))
    ):
        yield from ("x", "half")


def _only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    if use_count(value) != 1 or value.is_graph_output():
        return None
    reader = next(iter(value.uses())).node
    return reader if reader.op_type == op_type and not reader.domain else None


def _operands(node: ir.Node) -> tuple[tuple[ir.Value | None, ir.Value | None], ...]:
    left, right = node.inputs
    return (left, right), (right, left)


def _has_number(node: ir.Node, number: float) -> bool:
    return any(_is(each, number) for each in node.inputs)


def _is(value: ir.Value | None, number: float) -> bool:
    found = constant_scalar(value)
    return found is not None and abs(found - number) <= _TOLERANCE
