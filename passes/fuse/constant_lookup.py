"""Looks up what is known beforehand in constant tables beforehand: places, and types of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.constants import Array, constant_array, constant_ints
from onnxfold.passes.dims import size_of
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.size_arithmetic import Entry, entries
from onnxfold.passes.walk import use_count


@rule("lookup-of-slice", "Gather")
def _slice_of_ids(node: ir.Node, rewriter: Rewriter) -> None:
    """Gather(table, Slice(ids)) is Slice(Gather(table, ids))."""
    data, ids = node.inputs
    table, cut = _table(node), _made_by(ids, "Slice")
    if data is None or table is None or cut is None or cut.graph is not node.graph:
        return
    chosen = constant_array(cut.inputs[0])
    axes = constant_ints(cut.inputs[3]) if len(cut.inputs) > 3 else None
    if chosen is None or axes is None or not _fits(chosen, table) or use_count(data) != 1:
        return
    rows = np.take(table, chosen, axis=0)
    if rows.size > table.size:
        return
    rewriter.add_source(cut)
    places = np.asarray([axis % chosen.ndim for axis in axes], np.int64)
    inputs = list(cut.inputs)
    inputs[0] = rewriter.constant(node, rows, name=f"{data.name}_rows" if data else "rows")
    inputs[3] = rewriter.constant(node, places, name="axes")
    _put(node, "Slice", inputs, rewriter)


@rule("lookup-of-one-row", "Gather")
def _one_row(node: ir.Node, rewriter: Rewriter) -> None:
    """Rows that are all the same, added to as many: one row, broadcast."""
    table, rows = _table(node), node.outputs[0]
    found = None if table is None else _one_number(node.inputs[1])
    if table is None or found is None or use_count(rows) != 1 or rows.is_graph_output():
        return
    number, sizes = found
    add = next(iter(rows.uses())).node
    if add.op_type != "Add" or add.domain or not -len(table) <= number < len(table):
        return
    other = add.inputs[0] if add.inputs[1] is rows else add.inputs[1]
    if other is None or other is rows or not _has_sizes(other, (*sizes, *table.shape[1:])):
        return
    row = rewriter.constant(node, table[number].copy(), name=f"{rows.name}_row")
    rewriter.replace_node(node, [row])


@rule("row-into-slice", "Add")
def _row_into_slice(node: ir.Node, rewriter: Rewriter) -> None:
    """(x + row) + Slice(table) is x + Slice(table + row)."""
    for inner_value, sliced in (node.inputs, tuple(reversed(node.inputs))):
        inner, cut = _made_by(inner_value, "Add"), _made_by(sliced, "Slice")
        if inner is None or cut is None or len(cut.inputs) < 4:
            continue
        if not _is_own(inner, node) or not _is_own(cut, node):
            continue
        for data, row in (inner.inputs, tuple(reversed(inner.inputs))):
            sum_ = _sum_of_rows(cut, row)
            if sum_ is None or data is None:
                continue
            rewriter.add_source(inner)
            table = rewriter.constant(cut, sum_, name=f"{sliced.name}_table" if sliced else "table")
            inputs = [table, *cut.inputs[1:]]
            _put(cut, "Slice", inputs, rewriter)
            rewriter.replace_node(inner, [data])
            return


def _table(node: ir.Node) -> Array | None:
    """The constant float table from which ``node`` takes rows."""
    table = constant_array(node.inputs[0])
    axis = node.attributes.get("axis")
    if table is None or table.dtype != np.float32 or table.ndim < 2:
        return None
    is_first = axis is None or (not axis.is_ref() and axis.as_int() in (0, -table.ndim))
    return table if is_first else None


def _made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type and not node.domain else None


def _is_own(node: ir.Node, reader: ir.Node) -> bool:
    """Whether only ``reader`` reads ``node``, in the same graph."""
    output = node.outputs[0]
    return use_count(output) == 1 and not output.is_graph_output() and node.graph is reader.graph


def _fits(chosen: Array, table: Array) -> bool:
    return bool(chosen.size and chosen.min() >= -len(table) and chosen.max() < len(table))


def _one_number(ids: ir.Value | None) -> tuple[int, Sequence[Entry]] | None:
    """The number that all of ``ids`` are, and the sizes that they have if the model runs."""
    expand, filled = _made_by(ids, "Expand"), _made_by(ids, "ConstantOfShape")
    if filled is not None:
        numbers: Array | None = _fill(filled)
        sizes = entries(filled.inputs[0])
    elif expand is not None:
        sizes = entries(expand.inputs[1])
        numbers = None if sizes is None else _repeated(expand.inputs[0], sizes)
    else:
        return None
    if numbers is None or sizes is None:
        return None
    distinct: Array = np.unique(numbers)
    return (int(distinct[0]), sizes) if len(distinct) == 1 else None


def _fill(node: ir.Node) -> Array | None:
    value = node.attributes.get("value")
    if value is None or value.is_ref():
        return None
    return np.asarray(value.as_tensor().numpy())


def _repeated(value: ir.Value | None, sizes: Sequence[Entry]) -> Array | None:
    """The constant that ``value`` is a part of, where no axis has more than ``sizes``.

    Of more than one number, it is a part that begins at the first and ends at that size.
    """
    constant, cut = constant_array(value), _made_by(value, "Slice")
    if constant is not None:
        return constant if constant.size == 1 and constant.ndim <= len(sizes) else None
    if cut is None or len(cut.inputs) < 4:
        return None
    constant, axes = constant_array(cut.inputs[0]), constant_ints(cut.inputs[3])
    steps = constant_ints(cut.inputs[4]) if len(cut.inputs) > 4 else (1,)
    ends = entries(cut.inputs[2])
    if constant is None or axes is None or ends is None or constant.ndim != len(sizes):
        return None
    if len(axes) != 1 or constant_ints(cut.inputs[1]) != (0,) or steps != (1,):
        return None
    axis = axes[0] % constant.ndim
    if any(size != 1 for at, size in enumerate(constant.shape) if at != axis):
        return None
    return constant if ends[0] is not None and ends[0] == sizes[axis] else None


def _has_sizes(value: ir.Value, sizes: Sequence[Entry]) -> bool:
    if value.shape is None or len(value.shape) != len(sizes) or None in sizes:
        return False
    return all(size_of(value, axis) == size for axis, size in enumerate(sizes))


def _sum_of_rows(cut: ir.Node, row: ir.Value | None) -> Array | None:
    """The constant that ``cut`` slices plus ``row``, where that is whole after slicing."""
    table, added = constant_array(cut.inputs[0]), constant_array(row)
    axes = constant_ints(cut.inputs[3])
    if table is None or added is None or axes is None or table.dtype != np.float32:
        return None
    leading = table.ndim - added.ndim
    if added.dtype != table.dtype or leading < 0 or added.shape != table.shape[leading:]:
        return None
    if any(axis % table.ndim >= leading for axis in axes):
        return None
    return table + added


def _put(node: ir.Node, op_type: str, inputs: list[ir.Value | None], rewriter: Rewriter) -> None:
    old = node.outputs[0]
    new = rewriter.insert(
        node, op_type, inputs, name=f"{old.name}_cut", dtype=old.dtype, shape=old.shape
    )
    rewriter.replace_node(node, [new])


@dataclass(frozen=True)
class FoldConstantLookup(PatternPass):
    """Look up once what is the same at every run: rows at constant places, or always one row.

    The places of tokens are a slice of 0, 1, 2, ...: the slice of a table instead. The types of
    tokens are zeros if there is but one text: one row, which is added to the table of places. Sizes
    have to agree by how they are computed, not by what is declared.
    """

    name: ClassVar[str] = "fold-constant-lookup"
    contract: ClassVar[Contract] = Contract.REASSOCIATED

    def rules(self) -> RuleTable:
        """Lookups first: what they leave is added up."""
        return (_slice_of_ids, _one_row, _row_into_slice)
