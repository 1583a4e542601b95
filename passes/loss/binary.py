"""Binary cross-entropy from logits, as several losses need it."""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.passes.loss.graph import LossGraph, Variable


def softplus(graph: LossGraph, x: Variable) -> Variable:
    """log(1 + e^x), finite for large x, with the gradient sigmoid(x) everywhere.

    In float64 it is log(e^x + e^0) over pairs: runtimes without a kernel fall back to the
    operator's definition, which overflows above 709.
    """
    if graph.dtype != ir.DataType.DOUBLE:
        return graph.op("Softplus", x)
    zeros = graph.op("Expand", 0.0, graph.op("Shape", x))
    pairs = [graph.op("Unsqueeze", each, [-1]) for each in (x, zeros)]
    return graph.reduce("ReduceLogSumExp", graph.op("Concat", *pairs, axis=-1), [-1])


def binary_cross_entropy(
    graph: LossGraph, logits: Variable, targets: Variable, positive_weight: float = 1.0
) -> Variable:
    """W t softplus(-x) + (1 - t) softplus(x), element by element.

    Each term is exact where the other vanishes: confident right answers keep their small loss,
    which softplus(x) - x t loses to cancellation.
    """
    missed = graph.op("Mul", targets, softplus(graph, graph.op("Neg", logits)))
    if positive_weight != 1:
        missed = graph.op("Mul", missed, float(positive_weight))
    false = graph.op("Mul", graph.op("Sub", 1.0, targets), softplus(graph, logits))
    return graph.op("Add", missed, false)
