"""Lookups in tables with one scale a block: rows are gathered as codes, then dequantized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.constants import constant_tensor
from onnxfold.passes.fold.targets.builder import CONTRIB
from onnxfold.passes.fold.types import DEQUANTIZE
from onnxfold.passes.literals import AttributeValue
from onnxfold.passes.patterns import PatternPass, Rule, RuleTable
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.walk import use_count

_GATHERED = (ir.DataType.INT8, ir.DataType.UINT8)
"""What Gather takes; it takes no 4-bit integers."""

_PACKED = (ir.DataType.INT4, ir.DataType.UINT4)
_SMALLEST_BLOCK = 16  # of GatherBlockQuantized, which wants powers of 2


@dataclass(frozen=True)
class GatherBlocked(PatternPass):
    """Gather the rows of a table that has one scale a block before they are dequantized.

    Attributes:
        contrib: Whether 4-bit tables become ONNX Runtime's GatherBlockQuantized.
    """

    contrib: bool = False

    name: ClassVar[str] = "gather-blocked"
    contract: ClassVar[Contract] = Contract.EXACT

    def rules(self) -> RuleTable:
        """One rule."""
        return (Rule("gather-blocked", ("Gather",), self._gather),)

    def _gather(self, node: ir.Node, rewriter: Rewriter) -> None:
        table = _Table.match(node)
        if table is None:
            return
        if table.dtype in _GATHERED:
            result = _gather_all(node, table, rewriter)
        elif table.dtype in _PACKED and self.contrib and table.has_packed_kernel():
            result = _gather_packed(node, table, rewriter)
        else:
            return
        rewriter.replace_node(node, [result])
        if not use_count(table.dequantize.outputs[0]):
            rewriter.erase(table.dequantize)


@dataclass(frozen=True, eq=False)
class _Table:
    """A constant table that is dequantized block by block and looked up.

    Attributes:
        dequantize: The DequantizeLinear.
        dtype: The type of its codes.
        rank: Its rank.
        axis: The axis that is gathered along.
        block_axis: The axis along which blocks lie; another one.
        block_size: Their size.
    """

    dequantize: ir.Node
    dtype: ir.DataType
    rank: int
    axis: int
    block_axis: int
    block_size: int

    @classmethod
    def match(cls, node: ir.Node) -> _Table | None:
        """Read a Gather; None where it is something else."""
        source = node.inputs[0]
        dequantize = None if source is None else source.producer()
        if dequantize is None or dequantize.op_type != DEQUANTIZE or dequantize.domain:
            return None
        tensors = [constant_tensor(each) for each in dequantize.inputs if each is not None]
        block_size = dequantize.attributes.get_int("block_size", 0)
        if not block_size or any(tensor is None for tensor in tensors):
            return None
        codes = tensors[0]
        if codes is None or source is None or source.is_graph_output():
            return None
        rank = len(codes.shape)
        axis = node.attributes.get_int("axis", 0) % rank
        block_axis = dequantize.attributes.get_int("axis", 1) % rank
        if axis == block_axis:
            return None
        return cls(dequantize, codes.dtype, rank, axis, block_axis, block_size)

    def has_packed_kernel(self) -> bool:
        """Whether GatherBlockQuantized takes blocks of this size."""
        size = self.block_size
        return size >= _SMALLEST_BLOCK and size & (size - 1) == 0


def _gather_all(node: ir.Node, table: _Table, rewriter: Rewriter) -> ir.Value:
    """Gather codes, scales and zero points, then dequantize."""
    output, dequantize = node.outputs[0], table.dequantize
    rewriter.add_source(dequantize)
    gathered: list[ir.Value | None] = []
    for value in dequantize.inputs:
        tensor = constant_tensor(value)
        gathered.append(
            rewriter.insert(
                node,
                "Gather",
                [value, node.inputs[1]],
                name=f"{output.name}_rows",
                attributes={"axis": table.axis},
                dtype=None if tensor is None else tensor.dtype,
            )
            if value is not None
            else None
        )
    # Behind the gathered axis, axes keep their place counted from the back.
    behind = table.block_axis > table.axis
    axis = table.block_axis - table.rank if behind else table.block_axis
    attributes = {**dequantize.attributes, "axis": axis}
    return _result(node, DEQUANTIZE, gathered, attributes, rewriter)


def _gather_packed(node: ir.Node, table: _Table, rewriter: Rewriter) -> ir.Value:
    codes, scale, *zero_point = table.dequantize.inputs
    rewriter.add_source(table.dequantize)
    attributes = {
        "gather_axis": table.axis,
        "quantize_axis": table.block_axis,
        "block_size": table.block_size,
    }
    inputs = [codes, node.inputs[1], scale, *zero_point]
    return _result(node, "GatherBlockQuantized", inputs, attributes, rewriter, domain=CONTRIB)


def _result(
    node: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, AttributeValue | ir.Attr],
    rewriter: Rewriter,
    *,
    domain: str = "",
) -> ir.Value:
    output = node.outputs[0]
    return rewriter.insert(
        node,
        op_type,
        inputs,
        name=output.name or "rows",
        attributes=attributes,
        domain=domain,
        dtype=output.dtype,
        shape=output.shape,
    )
