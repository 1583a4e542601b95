"""Moves codes that integer kernels do not compute with: 16 bits, or one scale a channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxfold.passes.affine import AffineType
from onnxfold.passes.base import Contract
from onnxfold.passes.constants import constant_array
from onnxfold.passes.fold.rules.constants import axis_after_reshape
from onnxfold.passes.fold.types import TypeState, is_activation_type, is_dequantize
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.shapes import static_shape
from onnxfold.passes.walk import use_count

_RESHAPES = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
_SELECTIONS = frozenset(
    (
        "Compress",
        "Expand",
        "Gather",
        "GatherElements",
        "GatherND",
        "ReverseSequence",
        "Slice",
        "Tile",
    )
)
"""What ONNX Runtime does to 16-bit integers as well."""

_MOVED_TYPES = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16)


@rule("move-wide-codes", "QuantizeLinear", "com.microsoft::QuantizeLinear")
def _move(node: ir.Node, rewriter: Rewriter) -> None:
    types = TypeState(recode=False)
    wanted = types.parameters(node)
    chain = _moves_behind(node.inputs[0])
    source = (chain[0] if chain else node).inputs[0]
    dequantize = None if source is None else source.producer()
    if dequantize is None or wanted is None or is_activation_type(wanted):
        return
    if not is_dequantize(dequantize) or wanted.dtype not in _MOVED_TYPES:
        return
    codes, moved = dequantize.inputs[0], types.parameters(dequantize)
    if codes is None or constant_array(codes) is not None:
        return
    for each in chain:
        moved = None if moved is None else _type_behind(each, moved)
    if moved is None or not moved.same_as(wanted):
        return
    rewriter.add_source(dequantize, *chain)
    for each in chain:
        codes = _insert(node, each, codes, wanted.dtype, rewriter)
    rewriter.replace_node(node, [codes])
    for each in (*reversed(chain), dequantize):
        output = each.outputs[0]
        if not use_count(output) and not output.is_graph_output():
            rewriter.erase(each)


@dataclass(frozen=True)
class MoveWideCodes(PatternPass):
    """Move 16-bit codes, and codes with one scale a channel, instead of the reals they stand for.

    Where DequantizeLinear, ops that only move elements, and QuantizeLinear with the same
    parameters follow each other: the ops are done to the codes.
    """

    name: ClassVar[str] = "move-wide-codes"
    contract: ClassVar[Contract] = Contract.EXACT

    def rules(self) -> RuleTable:
        """One rule."""
        return (_move,)


def _moves_behind(value: ir.Value | None) -> list[ir.Node]:
    """The ops that move elements and end in ``value``, which alone read each other."""
    found: list[ir.Node] = []
    while value is not None and use_count(value) == 1 and not value.is_graph_output():
        node = value.producer()
        if node is None or node.domain or len(node.outputs) != 1:
            break
        if node.op_type != "Transpose" and node.op_type not in _RESHAPES | _SELECTIONS:
            break
        found.append(node)
        value = node.inputs[0]
    return found[::-1]


def _type_behind(node: ir.Node, affine: AffineType) -> AffineType | None:
    """The type of what ``node`` moves; None where the channels cannot be followed."""
    if affine.axis is None:
        return affine
    before, after = static_shape(node.inputs[0]), static_shape(node.outputs[0])
    axis: int | None = None
    if node.op_type == "Transpose" and node.inputs[0] is not None:
        rank = len(node.inputs[0].shape or ())
        perm = node.attributes.get_ints("perm") or list(range(rank))[::-1]
        axis = list(perm).index(affine.axis) if affine.axis < len(perm) else None
    elif node.op_type in _RESHAPES and before is not None and after is not None:
        axis = axis_after_reshape(before, after, affine.axis)
    if axis is None:
        return None
    return AffineType(affine.scale, affine.zero_point, affine.dtype, axis)


def _insert(
    anchor: ir.Node, moved: ir.Node, codes: ir.Value, dtype: ir.DataType, rewriter: Rewriter
) -> ir.Value:
    output = moved.outputs[0]
    return rewriter.insert(
        anchor,
        moved.op_type,
        [codes, *moved.inputs[1:]],
        name=f"{output.name}_codes",
        attributes=moved.attributes,
        dtype=dtype,
        shape=output.shape,
    )
