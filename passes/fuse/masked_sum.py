"""Sums what a mask leaves of the vectors of a sequence by one product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.dims import size_of, spans
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.rewriter import Rewriter
from onnxfold.passes.shapes import axes_of
from onnxfold.passes.size_arithmetic import entries
from onnxfold.passes.walk import use_count

_RANK, _ROWS = 3, 1
_FEWEST = 64
"""Features, from which on a product gains more than the calls of its nodes."""
_OLDEST = 13
"""The opset from which on Squeeze takes its axes as an input."""
_TURNED = (0, 2, 1)


@rule("masked-sum", "ReduceSum")
def _masked_sum(node: ir.Node, rewriter: Rewriter) -> None:
    product = None if node.inputs[0] is None else node.inputs[0].producer()
    if product is None or product.op_type != "Mul" or product.domain or not _sums_rows(node):
        return
    masked, output = product.outputs[0], node.outputs[0]
    if use_count(masked) != 1 or masked.is_graph_output() or product.graph is not node.graph:
        return
    for data, mask in (product.inputs, reversed(product.inputs)):
        if data is None or mask is None or not _is_masked(data, mask):
            continue
        if rewriter.opset(node) < _OLDEST or data.dtype != ir.DataType.FLOAT:
            return
        rewriter.add_source(product)
        total = _product(node, data, mask, rewriter)
        if not node.attributes.get_int("keepdims", 1):
            axes = rewriter.constant(node, np.asarray([_ROWS], np.int64), name="rows")
            total = _inserted(node, "Squeeze", [total, axes], output.shape, rewriter)
        rewriter.replace_node(node, [total])
        return


def _sums_rows(node: ir.Node) -> bool:
    masked, axes = node.inputs[0], axes_of(node, "axes", 1)
    if masked is None or masked.shape is None or len(masked.shape) != _RANK:
        return False
    keeps = node.attributes.get("keepdims")
    return axes in ((_ROWS,), (_ROWS - _RANK,)) and (keeps is None or not keeps.is_ref())


def _is_masked(data: ir.Value, mask: ir.Value) -> bool:
    """Whether ``mask`` is one number for each row of ``data``, [batch, rows, features]."""
    if data.shape is None or mask.shape is None:
        return False
    if len(data.shape) != _RANK or len(mask.shape) != _RANK or mask.shape[-1] != 1:
        return False
    features = data.shape[-1]
    return isinstance(features, int) and features >= _FEWEST and _have_as_many_rows(data, mask)


def _have_as_many_rows(data: ir.Value, mask: ir.Value) -> bool:
    rows = size_of(data, _ROWS)
    if size_of(mask, _ROWS) == rows:
        return True
    node = mask.producer()
    while node is not None and node.op_type == "Cast" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.op_type != "Expand" or node.domain:
        return False
    source, wanted = node.inputs[0], entries(node.inputs[1])
    if source is None or source.shape is None or len(source.shape) != _RANK or wanted is None:
        return False
    # Where the rows were fewer than those of the mask, they would be broadcast to them.
    return (
        len(wanted) == _RANK
        and wanted[_ROWS] == rows
        and spans(data, _ROWS, size_of(source, _ROWS))
    )


def _product(node: ir.Node, data: ir.Value, mask: ir.Value, rewriter: Rewriter) -> ir.Value:
    (batch, rows, _), (_, _, features) = _dims(mask), _dims(data)
    row = _inserted(node, "Transpose", [mask], (batch, 1, rows), rewriter, {"perm": _TURNED})
    shape = (_dims(data)[0] if batch == _dims(data)[0] else None, 1, features)
    return _inserted(node, "MatMul", [row, data], shape, rewriter)


def _dims(value: ir.Value) -> tuple[int | str | None, ...]:
    assert value.shape is not None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def _inserted(
    node: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value],
    shape: Sequence[int | str | None] | ir.Shape | None,
    rewriter: Rewriter,
    attributes: dict[str, Sequence[int]] | None = None,
) -> ir.Value:
    return rewriter.insert(
        node,
        op_type,
        inputs,
        name=f"{node.outputs[0].name}_{op_type.lower()}",
        attributes=attributes or {},
        dtype=ir.DataType.FLOAT,
        shape=shape,
    )


@dataclass(frozen=True)
class MaskedSum(PatternPass):
    """Multiply a row of weights with the vectors of a sequence: their weighted sum.

    Sentence embeddings are means of the vectors that a mask leaves: exporters multiply all of them
    and sum over the sequence. ONNX Runtime takes 10 us for the product instead of 40, for 96
    vectors of 384 (1.32, x86-64 with AVX-512, one thread). To be run after quantization, which
    would round a product.
    """

    name: ClassVar[str] = "masked-sum"
    contract: ClassVar[Contract] = Contract.REASSOCIATED

    def rules(self) -> RuleTable:
        """The one rule."""
        return (_masked_sum,)
