"""From losses of single elements or samples to one number."""

from __future__ import annotations

from typing import Literal, TypeAlias

from onnxfold.passes.loss.graph import Dims, LossGraph, Variable

Reduction: TypeAlias = Literal["none", "mean", "sum"]
"""``none`` leaves one loss per element, or per sample; the others make one number."""


def reduced(
    graph: LossGraph, losses: Variable, reduction: Reduction, weights: Variable | None = None
) -> Variable:
    """``losses`` times ``weights``, reduced.

    The mean with weights is the weighted mean, sum(w l) / sum(w); it is 0, with a gradient of 0,
    where all weights are 0, as nothing was asked for then.
    """
    if weights is None:
        return collected(graph, losses, reduction)
    return collected(graph, graph.op("Mul", losses, weights), reduction, weights)


def collected(
    graph: LossGraph, losses: Variable, reduction: Reduction, divisor: Variable | None = None
) -> Variable:
    """``losses``, reduced; for the mean their sum is divided by the sum of ``divisor``."""
    if reduction == "none":
        return losses
    if reduction == "mean" and divisor is None:
        return graph.reduce("ReduceMean", losses)
    total = graph.reduce("ReduceSum", losses)
    if reduction == "sum":
        return total
    return quotient(graph, total, graph.reduce("ReduceSum", divisor))


def quotient(graph: LossGraph, numerator: Variable, denominator: Variable) -> Variable:
    """``numerator / denominator``; where the denominator is 0, the numerator."""
    is_zero = graph.op("Equal", denominator, 0.0)
    return graph.op("Div", numerator, graph.op("Where", is_zero, 1.0, denominator))


def sample_weights(graph: LossGraph, weighted: bool, shape: Dims) -> Variable | None:
    """The input ``weights``, where it is asked for."""
    return graph.data_input("weights", graph.dtype, shape) if weighted else None
