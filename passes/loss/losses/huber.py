"""Huber loss."""

from __future__ import annotations

from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.declaration import loss
from onnxfold.passes.loss.graph import LossGraph, Variable
from onnxfold.passes.loss.reduction import Reduction, reduced, sample_weights


@loss("huber")
def huber(
    graph: LossGraph,
    predictions: Variable,
    *,
    delta: float = 1.0,
    reduction: Reduction = "mean",
    weighted: bool = False,
) -> Variable:
    """Half the squared error e^2 / 2 up to delta, and delta (abs(e) - delta / 2) beyond.

    Built as c (e - c / 2) with c = clip(e, -delta, delta), which has no corner. Divided by delta
    it is the smooth L1 loss.

    Source: torch.nn.functional.huber_loss.

    Shapes: predictions and targets of any one shape; weights of that shape. Units: those of the
    predictions, squared.

    Args:
        graph: The graph to build in.
        predictions: What the model predicts.
        delta: The error up to which the loss is quadratic.
        reduction: What becomes of the elements' losses.
        weighted: Take the input ``weights``.
    """
    if not delta > 0:
        raise UsageError(f"delta is {delta}; it must be positive")
    targets = graph.data_input("targets", graph.dtype, predictions.shape)
    error = graph.op("Sub", predictions, targets)
    clipped = graph.op("Clip", error, -delta, delta)
    losses = graph.op("Mul", clipped, graph.op("Sub", error, graph.op("Mul", clipped, 0.5)))
    weights = sample_weights(graph, weighted, predictions.shape)
    return reduced(graph, losses, reduction, weights)
