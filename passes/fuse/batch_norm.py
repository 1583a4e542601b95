"""Folds BatchNormalization into the linear operator before or after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.linear import LINEAR_OPS
from onnxfold.passes.linear_fold import fold_into_consumer, fold_into_producer
from onnxfold.passes.patterns import PatternPass, RuleTable, rule
from onnxfold.passes.rewriter import Rewriter


@rule("fold-batch-norm-into-producer", "BatchNormalization")
def _into_producer(node: ir.Node, rewriter: Rewriter) -> None:
    fold_into_producer(node, node.inputs[0], rewriter)


@rule("fold-batch-norm-into-consumer", *LINEAR_OPS)
def _into_consumer(node: ir.Node, rewriter: Rewriter) -> None:
    data = [value.producer() for value in node.inputs if value is not None]
    if any(each is not None and each.op_type == "BatchNormalization" for each in data):
        fold_into_consumer(node, rewriter)


@dataclass(frozen=True)
class FoldBatchNorm(PatternPass):
    """Fold inference-time BatchNormalization into Conv, ConvTranspose, Gemm and MatMul.

    With s = gamma / sqrt(variance + epsilon) the normalization is y = s x + (beta - s mean):
    after a linear operator s scales its output channels and the rest joins its bias; before one,
    s scales its input channels, and the shift joins the bias where no border is padded (Jacob
    et al., "Quantization and Training of Neural Networks", 2018, section 3.2). Computed in
    float64 and rounded once. What is in training mode, has another consumer, or would overflow
    the weights' type is left alone.
    """

    name: ClassVar[str] = "fold-batch-norm"
    contract: ClassVar[Contract] = Contract.REASSOCIATED

    def rules(self) -> RuleTable:
        """Into the producer first: it always folds completely."""
        return (_into_producer, _into_consumer)
