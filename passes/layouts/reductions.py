"""Reductions: their axes follow the layout."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import Array
from onnxfold.passes.layouts.carry import (
    Carry,
    Handler,
    Known,
    int_attribute,
    rank_of,
    remapped,
)
from onnxfold.passes.layouts.permutation import without
from onnxfold.passes.literals import AttributeValue
from onnxfold.passes.shapes import axes_of


def _reduction(node: ir.Node, known: Known) -> Carry | None:
    rank, axes = rank_of(node.inputs[0]), axes_of(node, "axes", 1)
    if rank is None or not axes or (known.index and not known.is_output):
        return None
    if len(known.layout) != rank:
        return None
    moved = tuple(sorted(remapped(axes, known.layout)))
    if "axes" in node.attributes:
        return _reduced(node, known, axes, {"axes": moved}, {})
    return _reduced(node, known, axes, {}, {1: np.array(moved, dtype=np.int64)})


def _arg(node: ir.Node, known: Known) -> Carry | None:
    """ArgMax and ArgMin: which of equal elements counts depends on their order along the axis."""
    rank, axis = rank_of(node.inputs[0]), int_attribute(node, "axis", 0)
    if rank is None or axis is None or len(known.layout) != rank:
        return None
    moved = {"axis": remapped((axis,), known.layout)[0]}
    return _reduced(node, known, (axis,), moved, {})


def _reduced(
    node: ir.Node,
    known: Known,
    axes: tuple[int, ...],
    attributes: Mapping[str, AttributeValue | None],
    constants: Mapping[int, Array],
) -> Carry | None:
    keeps = int_attribute(node, "keepdims", 1)
    # From a result without the axes, nothing says where they were.
    if keeps is None or (known.is_output and not keeps):
        return None
    gone = () if keeps else {axis % len(known.layout) for axis in axes}
    outputs = (without(known.layout, gone),)
    return Carry({0: known.layout}, outputs, attributes, constants)


EXACT: dict[str, Handler] = {
    "ArgMax": _arg,
    "ArgMin": _arg,
}
"""The first of equal elements is the same in every layout."""

ROUNDING: dict[str, Handler] = {
    "ReduceL1": _reduction,
    "ReduceL2": _reduction,
    "ReduceLogSum": _reduction,
    "ReduceLogSumExp": _reduction,
    "ReduceMax": _reduction,
    "ReduceMean": _reduction,
    "ReduceMin": _reduction,
    "ReduceProd": _reduction,
    "ReduceSum": _reduction,
    "ReduceSumSquare": _reduction,
}
"""Kernels add, and choose among zeros, in another order in another layout."""
