"""Computes what follows a lookup in a constant table on the table, once."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.constants import Array, constant_array
from onnxfold.passes.elementwise import compute_elementwise, is_elementwise
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.shapes import static_shape
from onnxfold.passes.walk import all_nodes, use_count

_ROW_WISE = ("LayerNormalization", "LogSoftmax", "Softmax")
_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
_ROUNDING = 1e-6
"""How far intermediate rounding may move an exit, relative to its largest element.

A tenth of the gate of ``REASSOCIATED``: a runtime's functions round worse than numpy's.
"""


@dataclass(frozen=True)
class FoldLookupTable(Pass):
    """``f(Gather(table, ids))`` becomes ``Gather(f(table), ids)``, ``f`` working row by row.

    ``f`` is any acyclic region of elementwise operators (and Softmax, LogSoftmax and
    LayerNormalization over axes inside the row) that reads only the looked up rows and constants
    that are the same for every id: bias and activation behind an embedding. It is evaluated in
    float64 and rounded once to float32 or float64, the type of the table.

    A region is left alone, with a remark, where an intermediate value is not finite in the type
    of the table, or where the result hangs on the rounding of the intermediate values (evaluated
    step by step in the type of the table, it differs by more than 1e-6 of its largest element).

    Attributes:
        max_rows: Tables with more rows are only folded where at least as many ids as rows are
            looked up and nothing else reads the table: else the table is stored twice.
        max_exits: How many values of the region may be read outside it; each becomes a Gather.
    """

    name: ClassVar[str] = "fold-lookup-table"
    contract: ClassVar[Contract] = Contract.REASSOCIATED

    max_rows: int = 4096
    max_exits: int = 1

    def apply(self, model: ir.Model, rewriter: Rewriter) -> None:
        """Fold what follows each Gather from a constant table."""
        for node in list(all_nodes(model)):
            if node.op_type == "Gather" and not node.domain and node.graph is not None:
                self._fold(node, rewriter)

    def _fold(self, gather: ir.Node, rewriter: Rewriter) -> None:
        lookup = _Lookup.of(gather)
        if lookup is None:
            return
        region, exits = self._choose(lookup.region(rewriter.opset(gather)), gather.outputs[0])
        if not exits:
            return
        problem = self._size_problem(lookup)
        tables = problem or lookup.tables(region, exits)
        if isinstance(tables, str):
            rewriter.remark(gather, tables)
            return
        with rewriter.step(self.name, gather, sources=region):
            for value, data in tables.items():
                table = rewriter.constant(gather, data, name=f"{value.name}_table")
                inputs = [table, gather.inputs[1]]
                row = rewriter.insert(
                    gather, "Gather", inputs, name=f"{value.name}_row", dtype=value.dtype
                )
                rewriter.replace_value(value, row, keep=region)
            for node in reversed(region):
                rewriter.erase(node)
            if not _readers(gather.outputs[0]):
                rewriter.erase(gather)

    def _choose(
        self, region: Sequence[ir.Node], source: ir.Value
    ) -> tuple[list[ir.Node], list[ir.Value]]:
        """The largest leading part of ``region`` that few enough values leave, and those values.

        A part with one exit is always a prefix: a node outside the part and ahead of its exit
        would read a value of the part that then had a second way out.
        """
        unread = {source: _readers(source)}
        exits: dict[ir.Value, None] = {source: None}
        best: tuple[list[ir.Node], list[ir.Value]] = ([], [])
        for index, node in enumerate(region):
            for value in node.inputs:
                if value is None or value not in unread:
                    continue
                unread[value] -= 1
                if not unread[value]:
                    del exits[value]
            output = node.outputs[0]
            unread[output] = _readers(output)
            if unread[output]:
                exits[output] = None
            if len(exits) <= self.max_exits:
                best = (list(region[: index + 1]), [each for each in exits if each is not source])
        return best

    def _size_problem(self, lookup: _Lookup) -> str:
        rows = len(lookup.table)
        if rows <= self.max_rows:
            return ""
        if lookup.id_count is None or lookup.id_count < rows:
            return f"the table has {rows} rows (limit {self.max_rows}) and fewer ids are looked up"
        if lookup.shared:
            return f"the table of {rows} rows is read elsewhere too and would be stored twice"
        return ""


def _readers(value: ir.Value) -> int:
    """How many node inputs and graph outputs read ``value``."""
    return use_count(value) + value.is_graph_output()


@dataclass(frozen=True)
class _Lookup:
    """A Gather of whole rows from a constant table.

    Attributes:
        source: The rows it gives.
        table: The table, rows first.
        id_rank: Rank of the ids, if known.
        id_count: Number of ids, if known.
        shared: Whether something else reads the table.
    """

    source: ir.Value
    table: Array
    id_rank: int | None
    id_count: int | None
    shared: bool

    @classmethod
    def of(cls, gather: ir.Node) -> _Lookup | None:
        data, ids = gather.inputs
        table = constant_array(data)
        axis = gather.attributes.get("axis")
        if data is None or ids is None or table is None or table.dtype not in _DTYPES:
            return None
        if axis is not None and (axis.is_ref() or axis.as_int() not in (0, -table.ndim)):
            return None
        shape = static_shape(ids)
        count = None if shape is None else math.prod(shape)
        rank = None if ids.shape is None else len(ids.shape)
        return cls(gather.outputs[0], table, rank, count, use_count(data) > 1)

    def region(self, opset: int) -> list[ir.Node]:
        """All nodes that compute from the rows alone, in an order of computation."""
        values = {self.source}
        region: dict[ir.Node, None] = {}
        queue = deque([self.source])
        while queue:
            for node in dict.fromkeys(use.node for use in queue.popleft().uses()):
                if node not in region and self._admits(node, values, opset):
                    region[node] = None
                    values.add(node.outputs[0])
                    queue.append(node.outputs[0])
        return list(region)

    def tables(
        self, region: Sequence[ir.Node], exits: Sequence[ir.Value]
    ) -> dict[ir.Value, Array] | str:
        """The table of each of ``exits``; or, in words, why rounding once would not do."""
        exact = self._evaluate(region, np.float64)
        stepwise = self._evaluate(region, self.table.dtype)
        if not all(np.isfinite(each).all() for each in stepwise.values()):
            return "an intermediate value is infinite or NaN for some row of the table"
        for value in exits:
            reach = np.abs(exact[value]).max(initial=0.0)
            error = np.abs(exact[value] - stepwise[value]).max(initial=0.0)
            if error > _ROUNDING * reach:
                return f"'{value.name}' hangs on how the intermediate values are rounded"
        return {value: exact[value].astype(self.table.dtype) for value in exits}

    def _evaluate(self, region: Sequence[ir.Node], dtype: npt.DTypeLike) -> dict[ir.Value, Array]:
        found = {self.source: self.table.astype(dtype)}
        for node in region:
            inputs = [
                found[value] if value in found else self.row_constant(value)
                for value in node.inputs
            ]
            compute = _compute_row_wise if node.op_type in _ROW_WISE else compute_elementwise
            found[node.outputs[0]] = compute(node, inputs, dtype)
        return found

    def row_constant(self, value: ir.Value | None) -> Array | None:
        """The constant ``value`` as it meets one row; None where it depends on the id's place."""
        array = constant_array(value)
        if array is None:
            return None
        row = self.table.shape[1:]
        extra = array.ndim - len(row)
        if extra > 0:
            if self.id_rank is None or extra > self.id_rank or math.prod(array.shape[:extra]) != 1:
                return None
            array = array.reshape(array.shape[extra:])
        fits = all(
            dim in (1, size)
            for dim, size in zip(reversed(array.shape), reversed(row), strict=False)
        )
        return array if fits else None

    def _admits(self, node: ir.Node, values: set[ir.Value], opset: int) -> bool:
        if node.graph is not self.source.graph:
            return False
        if not (is_elementwise(node) or self._is_row_wise(node, opset)):
            return False
        for index, value in enumerate(node.inputs):
            if value is None or value in values:
                continue
            constant = self.row_constant(value)
            typed = node.op_type == "Pow" and index == 1
            if constant is None or not (typed or constant.dtype == self.table.dtype):
                return False
        return True

    def _is_row_wise(self, node: ir.Node, opset: int) -> bool:
        if node.domain or node.op_type not in _ROW_WISE or len(node.outputs) != 1:
            return False
        if any(attribute.is_ref() for attribute in node.attributes.values()):
            return False
        last = None if self.id_rank is None else self.id_rank + self.table.ndim - 2
        default = 1 if opset < 13 and node.op_type != "LayerNormalization" else -1
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else default
        return self.table.ndim > 1 and axis in (-1, last)


def _compute_row_wise(node: ir.Node, inputs: Sequence[Array | None], dtype: npt.DTypeLike) -> Array:
    """Softmax, LogSoftmax or LayerNormalization over the last axis, every step in ``dtype``."""
    source, *affine = [np.float64(0) if each is None else each.astype(dtype) for each in inputs]
    with np.errstate(all="ignore"):
        if node.op_type == "LayerNormalization":
            centred = source - source.mean(axis=-1, keepdims=True)
            epsilon = (
                node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
            )
            variance = np.square(centred).mean(axis=-1, keepdims=True)
            scaled = centred / np.sqrt(variance + epsilon) * affine[0]
            return (scaled + affine[1] if len(affine) > 1 else scaled).astype(dtype)
        shifted = source - source.max(axis=-1, keepdims=True)
        total = np.exp(shifted).sum(axis=-1, keepdims=True)
        result = (
            shifted - np.log(total) if node.op_type == "LogSoftmax" else np.exp(shifted) / total
        )
        return result.astype(dtype)
