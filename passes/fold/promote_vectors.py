"""Gives vectors in fake-quantized MatMuls a second dimension, which integer kernels want."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.fold.types import is_dequantize
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.rewriter import Rewriter

_NEW_AXIS = (0, 1)
"""Where the left and the right operand of MatMul get their second dimension."""

_RESULT_AXIS = (-2, -1)
"""Which dimension of the result each of them stands for."""


@rule("promote-vectors", "MatMul")
def _promote(node: ir.Node, rewriter: Rewriter) -> None:
    ranks = [
        None if each is None or each.shape is None else len(each.shape) for each in node.inputs
    ]
    vectors = [position for position, rank in enumerate(ranks) if rank == 1]
    producers = [None if each is None else each.producer() for each in node.inputs]
    if not vectors or not any(each is not None and is_dequantize(each) for each in producers):
        return
    output = node.outputs[0]
    inputs = list(node.inputs)
    for position in vectors:
        source = inputs[position]
        assert source is not None
        inputs[position] = _reshaped(
            "Unsqueeze", source, [_NEW_AXIS[position]], node, rewriter, name=source.name
        )
    product = rewriter.insert(
        node, "MatMul", inputs, name=f"{output.name}_matrix", dtype=output.dtype
    )
    axes = [_RESULT_AXIS[position] for position in vectors]
    vector = _reshaped("Squeeze", product, axes, node, rewriter, name=output.name)
    if output.dtype is not None:
        rewriter.set_type(vector, output.dtype, output.shape)
    rewriter.replace_node(node, [vector])


def _reshaped(
    op_type: str,
    value: ir.Value,
    axes: list[int],
    node: ir.Node,
    rewriter: Rewriter,
    *,
    name: str | None,
) -> ir.Value:
    constant = rewriter.constant(node, np.asarray(axes, np.int64), name=f"{name}_axes")
    return rewriter.insert(
        node, op_type, [value, constant], name=f"{name}_{op_type.lower()}", dtype=value.dtype
    )


@dataclass(frozen=True)
class PromoteVectors(PatternPass):
    """Write a fake-quantized product with a vector as one of matrices, between Unsqueeze, Squeeze.

    QLinearMatMul and MatMulInteger have no kernels for vectors.
    """

    name: ClassVar[str] = "promote-vectors"
    contract: ClassVar[Contract] = Contract.INTEGER

    def rules(self) -> RuleTable:
        """The one rule."""
        return (_promote,)
