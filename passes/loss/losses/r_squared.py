"""Coefficient of determination."""

from __future__ import annotations

from onnxfold.passes.loss.declaration import loss
from onnxfold.passes.loss.graph import LossGraph, Variable
from onnxfold.passes.loss.reduction import Reduction, collected, quotient, sample_weights
from onnxfold.passes.loss.shapes import need_rank


@loss("r-squared", better="higher")
def r_squared(
    graph: LossGraph,
    predictions: Variable,
    *,
    centered: bool = True,
    weighted: bool = False,
    reduction: Reduction = "mean",
) -> Variable:
    """R^2 = 1 - sum w (y - p)^2 / sum w (y - m)^2, m the weighted mean of the targets y.

    ``centered=false`` puts 0 for m: what statsmodels reports for a model without a constant. The
    predictions p may come from any model, one fitted to altered (winsorized, say) data too: on the
    original targets this is that model's R^2 on the original data, negative where it does worse
    than the mean.

    Where the targets do not vary it is 1 for perfect predictions and otherwise 0, as scikit-learn
    has it. The sums are over the batch: small batches make a poor estimate.

    Source: statsmodels OLS and WLS ``rsquared``; sklearn.metrics.r2_score.

    Shapes: predictions and targets ``[N]`` or ``[N, outputs]``; weights ``[N]``. Unit: none.

    Args:
        graph: The graph to build in.
        predictions: p.
        centered: Compare with the mean of the targets instead of 0.
        weighted: Take the input ``weights``, one a sample.
        reduction: What becomes of several outputs; ``none`` leaves one value each.
    """
    need_rank(predictions, "predictions", 1, 2)
    targets = graph.data_input("targets", graph.dtype, predictions.shape)
    weights = sample_weights(graph, weighted, (predictions.shape[0],))
    if weights is not None and len(predictions.shape) == 2:
        weights = graph.op("Unsqueeze", weights, [1])
    residual = _sum_of_squares(graph, graph.op("Sub", targets, predictions), weights)
    if centered:
        targets = graph.op("Sub", targets, _mean(graph, targets, weights))
    total = _sum_of_squares(graph, targets, weights)
    return collected(graph, _determination(graph, residual, total), reduction)


def _determination(graph: LossGraph, residual: Variable, total: Variable) -> Variable:
    ratio = graph.op("Sub", 1.0, quotient(graph, residual, total))
    is_perfect = graph.cast(graph.op("Equal", residual, 0.0))
    return graph.op("Where", graph.op("Equal", total, 0.0), is_perfect, ratio)


def _sum_of_squares(graph: LossGraph, x: Variable, weights: Variable | None) -> Variable:
    squares = graph.op("Mul", x, x)
    if weights is not None:
        squares = graph.op("Mul", squares, weights)
    return graph.reduce("ReduceSum", squares, [0])


def _mean(graph: LossGraph, x: Variable, weights: Variable | None) -> Variable:
    if weights is None:
        return graph.reduce("ReduceMean", x, [0], keepdims=True)
    total = graph.reduce("ReduceSum", graph.op("Mul", x, weights), [0], keepdims=True)
    return quotient(graph, total, graph.reduce("ReduceSum", weights, [0], keepdims=True))
