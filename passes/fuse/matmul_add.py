"""Fuses MatMul and Add of a bias into Gemm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.channel_affine import BiasedLinear
from onnxfold.passes.constants import constant_array
from onnxfold.passes.linear import LinearOp
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.rewriter import Rewriter


@rule("fuse-matmul-add", "MatMul")
def _fuse(node: ir.Node, rewriter: Rewriter) -> None:
    linear = LinearOp.match(node)
    biased = BiasedLinear.around(linear) if linear is not None else None
    # Gemm takes matrices only; its constant operand is the right one here.
    if linear is None or biased is None or biased.add is None or linear.weight_index != 1:
        return
    if linear.data.shape is None or len(linear.data.shape) != 2:
        return
    add = biased.add
    bias = next(value for value in add.inputs if constant_array(value) is not None)
    fused = rewriter.insert(
        add,
        "Gemm",
        [linear.data, linear.weight, bias],
        name=linear.output.name or "gemm",
        dtype=linear.dtype,
        shape=biased.output.shape,
    )
    rewriter.add_source(add)
    rewriter.replace_node(add, [fused])
    rewriter.erase(node)


@dataclass(frozen=True)
class FuseMatMulAdd(PatternPass):
    """Fuse MatMul of a matrix with constant weights, and the Add of its bias, into Gemm.

    ONNX Runtime does the same when its optimizations are on; with them off, or in other
    runtimes, the fused form saves one pass over the output.
    """

    name: ClassVar[str] = "fuse-matmul-add"
    contract: ClassVar[Contract] = Contract.REASSOCIATED

    def rules(self) -> RuleTable:
        """The one rule."""
        return (_fuse,)
