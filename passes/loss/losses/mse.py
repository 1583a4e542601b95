"""Mean squared error."""

from __future__ import annotations

from onnxfold.passes.loss.declaration import loss
from onnxfold.passes.loss.graph import LossGraph, Variable
from onnxfold.passes.loss.reduction import Reduction, reduced, sample_weights


@loss("mse")
def mse(
    graph: LossGraph,
    predictions: Variable,
    *,
    reduction: Reduction = "mean",
    weighted: bool = False,
) -> Variable:
    """Squared error: (predictions - targets)^2.

    Source: torch.nn.functional.mse_loss; with weights the weighted mean, sum(w l) / sum(w), as
    sklearn.metrics.mean_squared_error has it.

    Shapes: predictions and targets of any one shape; weights of that shape. Units: those of the
    predictions, squared.

    Args:
        graph: The graph to build in.
        predictions: What the model predicts.
        reduction: What becomes of the elements' losses.
        weighted: Take the input ``weights``.
    """
    targets = graph.data_input("targets", graph.dtype, predictions.shape)
    error = graph.op("Sub", predictions, targets)
    weights = sample_weights(graph, weighted, predictions.shape)
    return reduced(graph, graph.op("Mul", error, error), reduction, weights)
