"""What arithmetic on shapes computes, as far as it is known without running."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import onnx_ir as ir

from onnxfold.passes.constants import constant_ints
from onnxfold.passes.dims import Size, size_of
from onnxfold.passes.shapes import axes_of, static_shape

Entry: TypeAlias = "Size | None"
"""One element of a vector of sizes; None where it is not known."""

_DEEP = 20
_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)
_KEEPING = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze")


def entries(value: ir.Value | None, depth: int = 0) -> tuple[Entry, ...] | None:
    """The elements of ``value``, integers in one axis or none; None where their number is unknown.

    Sizes are taken to fit 32 bits.
    """
    given = constant_ints(value)
    if given is not None or value is None:
        return given
    if value.dtype not in _INTEGERS or value.shape is None or len(value.shape) > 1:
        return None
    return _computed(value, depth) or _unknown(value)


def _computed(value: ir.Value, depth: int) -> tuple[Entry, ...] | None:
    node = value.producer()
    if node is None or node.domain or depth > _DEEP:
        return None
    if node.op_type == "Shape":
        return _shape(node)
    if node.op_type in _KEEPING:
        return entries(node.inputs[0], depth + 1)
    handler = _HANDLERS.get(node.op_type)
    operands = [entries(each, depth + 1) for each in node.inputs] if handler else []
    known = [each for each in operands if each is not None]
    return handler(node, known) if handler and known and len(known) == len(operands) else None


def _unknown(value: ir.Value) -> tuple[Entry, ...] | None:
    """As many elements as there are, none of them known."""
    dims = static_shape(value)
    return None if dims is None else (None,) * (dims[0] if dims else 1)


def _shape(node: ir.Node) -> tuple[Entry, ...] | None:
    source = node.inputs[0]
    bounds = [node.attributes.get(name) for name in ("start", "end")]
    if source is None or source.shape is None:
        return None
    if any(bound is not None and bound.is_ref() for bound in bounds):
        return None
    start, end = (None if bound is None else bound.as_int() for bound in bounds)
    return tuple(size_of(source, axis) for axis in range(len(source.shape))[start:end])


_Operands: TypeAlias = "Sequence[tuple[Entry, ...]]"


def _gather(_: ir.Node, operands: _Operands) -> tuple[Entry, ...] | None:
    source, picks = operands
    if any(not isinstance(each, int) or not -len(source) <= each < len(source) for each in picks):
        return None
    return tuple(source[each] for each in picks if isinstance(each, int))


def _slice(_: ir.Node, operands: _Operands) -> tuple[Entry, ...] | None:
    bounds = [each[0] if len(each) == 1 else None for each in operands[1:]]
    numbers = [each for each in bounds if isinstance(each, int)]
    if len(numbers) != len(bounds) or len(numbers) < 2 or (numbers[2:3] not in ([], [0], [-1])):
        return None
    step = numbers[3] if len(numbers) > 3 else 1
    return operands[0][numbers[0] : numbers[1] : step] if step > 0 else None


def _concat(_: ir.Node, operands: _Operands) -> tuple[Entry, ...] | None:
    return tuple(entry for operand in operands for entry in operand)


def _arithmetic(compute: Callable[[int, int], int | None], neutral: int | None) -> _Handler:
    """Elementwise on numbers; ``neutral`` on the right (or either) side keeps an axis."""

    def handler(node: ir.Node, operands: _Operands) -> tuple[Entry, ...] | None:
        left, right = operands
        count = max(len(left), len(right))
        if any(len(each) not in (1, count) for each in operands):
            return None
        return tuple(
            one(left[at % len(left)], right[at % len(right)], node.op_type) for at in range(count)
        )

    def one(left: Entry, right: Entry, op_type: str) -> Entry:
        if isinstance(left, int) and isinstance(right, int):
            return compute(left, right)
        if neutral is not None and right == neutral:
            return left
        return right if op_type in ("Add", "Mul") and left == neutral else None

    return handler


def _product(node: ir.Node, operands: _Operands) -> tuple[Entry, ...] | None:
    total = 1
    for entry in operands[0]:
        if not isinstance(entry, int):
            return None
        total *= entry
    kept = node.attributes.get("noop_with_empty_axes") and not axes_of(node, "axes", 1)
    return None if kept else (total,)


_Handler: TypeAlias = "Callable[[ir.Node, _Operands], tuple[Entry, ...] | None]"

_HANDLERS: dict[str, _Handler] = {
    "Add": _arithmetic(lambda left, right: left + right, 0),
    "Concat": _concat,
    "Div": _arithmetic(lambda left, right: left // right if left >= 0 < right else None, 1),
    "Gather": _gather,
    "Max": _arithmetic(max, None),
    "Min": _arithmetic(min, None),
    "Mul": _arithmetic(lambda left, right: left * right, 1),
    "ReduceProd": _product,
    "Slice": _slice,
    "Sub": _arithmetic(lambda left, right: left - right, 0),
}
"""Operators whose operands are all vectors of sizes."""

SIZE_OPERATORS = (*_HANDLERS, *_KEEPING, "Shape")
"""The operators that ``entries`` follows."""
