"""Expands no axis that whatever reads it broadcasts anyway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.constants import constant_ints, constant_scalar
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.shapes import axes_of, static_shape

_ELEMENTWISE = frozenset(
    {"Abs", "Cast", "Ceil", "Clip", "Erf", "Exp", "Floor", "Identity", "Log", "Neg", "Not"}
    | {"Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sqrt", "Tanh"}
)
"""They compute every element of their first operand by itself."""

_BROADCASTING = frozenset({"Add", "Div", "Mul", "Pow", "Sub"})
_REDUCTIONS = frozenset({"ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"})
_OLDEST = 13
"""From which opset on ReduceSum takes its axes like the others, or as an input."""


@rule("narrow-expand", "Expand")
def _narrow(node: ir.Node, rewriter: Rewriter) -> None:
    source, wanted = node.inputs
    joint = None if wanted is None else wanted.producer()
    if source is None or source.shape is None or joint is None or joint.graph is not node.graph:
        return
    rank = len(source.shape)
    if joint.op_type != "Concat" or joint.domain or rewriter.opset(node) < _OLDEST:
        return
    if len(joint.inputs) != rank or any(static_shape(part) != (1,) for part in joint.inputs):
        return
    for axis, part in enumerate(joint.inputs):
        size = constant_ints(part)
        if size is None or size[0] < 2 or source.shape[axis] != 1:
            continue
        narrowed = _narrowed(node.outputs[0], axis - rank, size[0])
        if narrowed is not None:
            _rewrite(node, joint, axis, narrowed, rewriter)
            return


def _narrowed(value: ir.Value, axis: int, size: int) -> list[tuple[ir.Value, int]] | None:
    """What becomes narrow with ``value``, each with its axis from the back; None if any is read."""
    if value.is_graph_output() or value.shape is None or not value.uses():
        return None
    found = [(value, axis)]
    for use in value.uses():
        node, output = use.node, use.node.outputs[0]
        if node.domain or node.graph is not value.graph:
            return None
        if node.op_type in _BROADCASTING:
            if not any(_has_size(each, axis, size) for each in node.inputs if each is not value):
                return None
            continue
        if use.idx or any(
            constant_ints(each) is None and constant_scalar(each) is None
            for each in node.inputs[1:]
            if each
        ):
            return None
        place = axis if node.op_type in _ELEMENTWISE else _kept_axis(node, axis, len(value.shape))
        behind = None if place is None else _narrowed(output, place, size)
        if behind is None:
            return None
        found += behind
    return found


def _has_size(value: ir.Value | None, axis: int, size: int) -> bool:
    if value is None or value.shape is None or len(value.shape) < -axis:
        return False
    return value.shape[axis] == size


def _kept_axis(node: ir.Node, axis: int, rank: int) -> int | None:
    """Where a reduction of other axes leaves an axis, from the back."""
    axes = axes_of(node, "axes", 1) if node.op_type in _REDUCTIONS else None
    if not axes:
        return None
    reduced = {each % rank for each in axes}
    if axis + rank in reduced:
        return None
    if node.attributes.get_int("keepdims", 1):
        return axis
    return axis + sum(1 for each in reduced if each > axis + rank)


def _rewrite(
    node: ir.Node,
    joint: ir.Node,
    axis: int,
    narrowed: Sequence[tuple[ir.Value, int]],
    rewriter: Rewriter,
) -> None:
    parts = list(joint.inputs)
    parts[axis] = rewriter.constant(node, np.ones(1, np.int64), name="one")
    target = rewriter.insert(
        node,
        "Concat",
        parts,
        name=f"{joint.outputs[0].name}_narrow",
        attributes={"axis": 0},
        dtype=ir.DataType.INT64,
        shape=joint.outputs[0].shape,
    )
    for value, place in narrowed:
        dims = list(value.shape or ())
        dims[place] = 1
        rewriter.set_type(value, value.dtype, ir.Shape(dims))
    rewriter.set_input(node, 1, target)
    rewriter.add_source(joint)


@dataclass(frozen=True)
class NarrowExpand(PatternPass):
    """Leave an axis at size 1 where an Expand makes it wide, but its readers broadcast it.

    Exporters expand a mask over the features that it is multiplied with, and count its ones in
    each of them. Followed through elementwise operators and reductions of other axes, up to
    arithmetic with what has that size.
    """

    name: ClassVar[str] = "narrow-expand"
    contract: ClassVar[Contract] = Contract.REASSOCIATED

    def rules(self) -> RuleTable:
        """The one rule."""
        return (_narrow,)
