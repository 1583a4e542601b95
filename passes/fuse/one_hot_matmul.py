"""Fuses the product of a one-hot encoding with constant weights into a lookup of their rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.constants import Array, constant_array, constant_scalar
from onnxfold.passes.linear import LinearOp
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.rewriter import Rewriter

_INDEX_TYPES = (ir.DataType.INT32, ir.DataType.INT64)
_CLIP_OF_INTEGERS = 12
"""The opset in which Clip takes integers."""


@dataclass(frozen=True)
class _OneHot:
    """``encoded[..., k] = (ids == k)`` for k in 0 .. classes - 1.

    Attributes:
        ids: The ids, of an index type.
        column: Whether ``ids`` has the axis of the classes, with one element, at the end.
        wraps: Whether ids from -classes to -1 count from the end.
    """

    ids: ir.Value
    column: bool
    wraps: bool

    @classmethod
    def match(cls, value: ir.Value, classes: int) -> _OneHot | None:
        """Recognise OneHot, and the comparison of ids with 0 .. classes - 1."""
        node = value.producer()
        if node is None or node.domain:
            return None
        if node.op_type == "OneHot":
            return _match_operator(node, classes)
        compared = node.inputs[0].producer() if node.op_type == "Cast" and node.inputs[0] else None
        if compared is None or compared.op_type != "Equal" or compared.domain:
            return None
        for ids, numbers in (tuple(compared.inputs), tuple(reversed(compared.inputs))):
            if _is_count(constant_array(numbers), ids, classes) and ids is not None:
                return cls(ids, column=True, wraps=False)
        return None


def _match_operator(node: ir.Node, classes: int) -> _OneHot | None:
    ids, depth, values = node.inputs
    levels = constant_array(values)
    rank = len(ids.shape) if ids is not None and ids.shape is not None else None
    axis = node.attributes.get_int("axis", -1)
    if ids is None or ids.dtype not in _INDEX_TYPES or axis not in (-1, rank):
        return None
    if levels is None or levels.tolist() != [0, 1] or constant_scalar(depth) != classes:
        return None
    return _OneHot(ids, column=False, wraps=True)


def _is_count(numbers: Array | None, ids: ir.Value | None, classes: int) -> bool:
    """Whether ``numbers`` are 0 .. classes - 1 along the last axis, which ``ids`` lacks."""
    if numbers is None or ids is None or ids.shape is None or ids.dtype not in _INDEX_TYPES:
        return False
    if numbers.ndim == 0 or numbers.ndim > len(ids.shape) or ids.shape[-1] != 1:
        return False
    if numbers.shape[-1] != classes or numbers.size != classes:
        return False
    return bool(np.array_equal(numbers.reshape(-1), np.arange(classes)))


@rule("fuse-one-hot-matmul", "MatMul")
def _fuse(node: ir.Node, rewriter: Rewriter) -> None:
    linear = LinearOp.match(node)
    opset = rewriter.opset(node)
    if linear is None or linear.weight_index != 1 or opset < _CLIP_OF_INTEGERS:
        return
    one_hot = _OneHot.match(linear.data, linear.in_channels)
    if one_hot is None or not np.isfinite(linear.weights).all():
        return
    table = _table(linear.weights)
    encoder = linear.data.producer()
    rewriter.add_source(*([encoder] if encoder is not None else []))
    ids = _row_ids(node, one_hot, linear.in_channels, rewriter)
    rows = rewriter.constant(node, table, name=f"{linear.weight.name}_rows")
    name = linear.output.name or "rows"
    shape = ir.Shape([*ids.shape, linear.out_channels]) if ids.shape is not None else None
    result = rewriter.insert(
        node, "Gather", [rows, ids], name=name, dtype=linear.dtype, shape=shape
    )
    rewriter.replace_node(node, [result])


def _table(weights: Array) -> Array:
    """The rows, and one of zeros that stands for every id that has none.

    A sum that starts from +0 never gives -0: so neither does the table.
    """
    return np.concatenate([weights, np.zeros_like(weights[:1])]) + weights.dtype.type(0)


def _row_ids(anchor: ir.Node, one_hot: _OneHot, classes: int, rewriter: Rewriter) -> ir.Value:
    """Insert what turns ids into rows: an id outside the classes becomes the row of zeros.

    Clipped to [-1, classes], it is either the number of the last row, or counts back to it.
    """
    ids = _squeezed(anchor, one_hot.ids, rewriter) if one_hot.column else one_hot.ids
    dtype, shape, base = ids.dtype, ids.shape, one_hot.ids.name or "ids"
    assert dtype is not None

    def number(value: int, name: str) -> ir.Value:
        return rewriter.constant(anchor, np.array(value, dtype.numpy()), name=f"{base}_{name}")

    def insert(op_type: str, inputs: list[ir.Value], name: str) -> ir.Value:
        name = f"{base}_{name}"
        return rewriter.insert(anchor, op_type, inputs, name=name, dtype=dtype, shape=shape)

    if one_hot.wraps:
        negative = insert("Less", [ids, number(0, "zero")], "negative")
        negative.dtype = ir.DataType.BOOL
        wrapped = insert("Add", [ids, number(classes, "classes")], "wrapped")
        ids = insert("Where", [negative, wrapped, ids], "positive")
    bounds = [number(-1, "low"), number(classes, "high")]
    return insert("Clip", [ids, *bounds], "row")


def _squeezed(anchor: ir.Node, ids: ir.Value, rewriter: Rewriter) -> ir.Value:
    """``ids`` without their last axis."""
    assert ids.shape is not None
    inputs, attributes, last = [ids], {}, len(ids.shape) - 1
    if rewriter.opset(anchor) < 13:
        attributes = {"axes": [last]}
    else:
        inputs.append(rewriter.constant(anchor, np.array([last]), name=f"{ids.name}_axis"))
    return rewriter.insert(
        anchor,
        "Squeeze",
        inputs,
        name=f"{ids.name}_squeezed",
        attributes=attributes,
        dtype=ids.dtype,
        shape=ir.Shape(ids.shape[:-1]),
    )


@dataclass(frozen=True)
class FuseOneHotMatMul(PatternPass):
    """Replace one-hot encoding times constant weights by Gather of the weights' rows.

    Exact: of the products only one is not 0 (the weights are finite), and an id outside the
    classes looks up a row of zeros. Knows OneHot, and ids compared with 0, 1, 2, ...
    """

    name: ClassVar[str] = "fuse-one-hot-matmul"
    contract: ClassVar[Contract] = Contract.EXACT

    def rules(self) -> RuleTable:
        """The one rule."""
        return (_fuse,)
