"""Mean absolute error."""

from __future__ import annotations

from onnxfold.passes.loss.declaration import loss
from onnxfold.passes.loss.graph import LossGraph, Variable
from onnxfold.passes.loss.reduction import Reduction, reduced, sample_weights


@loss("l1")
def l1(
    graph: LossGraph,
    predictions: Variable,
    *,
    reduction: Reduction = "mean",
    weighted: bool = False,
) -> Variable:
    """Absolute error: |predictions - targets|; its gradient is 0 where they are equal.

    Source: torch.nn.functional.l1_loss; with weights sklearn.metrics.mean_absolute_error.

    Shapes: predictions and targets of any one shape; weights of that shape. Units: those of the
    predictions.

    Args:
        graph: The graph to build in.
        predictions: What the model predicts.
        reduction: What becomes of the elements' losses.
        weighted: Take the input ``weights``.
    """
    targets = graph.data_input("targets", graph.dtype, predictions.shape)
    error = graph.op("Sub", predictions, targets)
    weights = sample_weights(graph, weighted, predictions.shape)
    return reduced(graph, graph.op("Abs", error), reduction, weights)
