"""Folds Mul, Div, Add and Sub by constants into the linear operator before or after them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import onnx_ir as ir

from onnxfold.passes.base import Contract
from onnxfold.passes.linear import LINEAR_OPS
from onnxfold.passes.linear_fold import fold_into_consumer, fold_into_producer
from onnxfold.passes.patterns import PatternPass, Rule, RuleTable, rule
from onnxfold.passes.rewriter import Rewriter

_ARITHMETIC = ("Mul", "Div", "Add", "Sub")


@rule("fold-arithmetic-into-producer", *_ARITHMETIC)
def _into_producer(node: ir.Node, rewriter: Rewriter) -> None:
    for operand in node.inputs:
        if operand is not None and operand.producer() is not None and node.graph is not None:
            fold_into_producer(node, operand, rewriter)


def _into_consumer(node: ir.Node, rewriter: Rewriter, spread: float) -> None:
    data = [value.producer() for value in node.inputs if value is not None]
    if any(each is not None and _ends_gelu(each) for each in data):
        return
    if any(each is not None and each.op_type in _ARITHMETIC for each in data):
        fold_into_consumer(node, rewriter, spread)


def _ends_gelu(node: ir.Node) -> bool:
    """Whether ``node`` halves x (1 + erf(...)): whole, ONNX Runtime computes Gelu in one kernel."""
    if node.op_type != "Mul":
        return False
    products = [each.producer() for each in node.inputs if each is not None]
    sums = [
        factor.producer()
        for product in products
        if product is not None and product.op_type == "Mul"
        for factor in product.inputs
        if factor is not None
    ]
    return any(
        term is not None and (erf := term.producer()) is not None and erf.op_type == "Erf"
        for each in sums
        if each is not None and each.op_type == "Add"
        for term in each.inputs
    )


@dataclass(frozen=True)
class FoldScaleBias(PatternPass):
    """Fold arithmetic with constants into Conv, ConvTranspose, Gemm and MatMul.

    The constant is one number or one per channel; what broadcasts the result to a larger shape is
    left alone, as is a shift before a padded Conv, whose borders do not see it. A MatMul has no
    bias: its shift is kept in the one Add that follows it. Computed in float64, rounded once.

    Attributes:
        spread: Fold into the operator behind only factors of channels that differ by no more than
            this, largest to smallest; weights that take factors of a wide spread in have channels
            that codes of 8 bits do not reach. 0 for any.
    """

    spread: float = 0.0

    name: ClassVar[str] = "fold-scale-bias"
    contract: ClassVar[Contract] = Contract.REASSOCIATED

    def rules(self) -> RuleTable:
        """Into the producer first: it always folds completely."""
        rewrite = partial(_into_consumer, spread=self.spread or math.inf)
        return (_into_producer, Rule("fold-arithmetic-into-consumer", LINEAR_OPS, rewrite))
