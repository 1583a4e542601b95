"""Triplet margin loss."""

from __future__ import annotations

from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.declaration import loss
from onnxfold.passes.loss.graph import LossGraph, Variable
from onnxfold.passes.loss.reduction import Reduction, reduced, sample_weights
from onnxfold.passes.loss.shapes import need_same_shape

_OFFSET = 1e-6


@loss("triplet", tensors=("anchor", "positive", "negative"))
def triplet(
    graph: LossGraph,
    anchor: Variable,
    positive: Variable,
    negative: Variable,
    *,
    margin: float = 1.0,
    swap: bool = False,
    reduction: Reduction = "mean",
    weighted: bool = False,
) -> Variable:
    """max(d(anchor, positive) - d(anchor, negative) + margin, 0), d the Euclidean distance.

    d(a, b) = sqrt(sum (a - b + 1e-6)^2): the offset keeps the root's gradient finite where both
    are equal.

    Source: torch.nn.functional.triplet_margin_loss with p = 2.

    Shapes: anchor, positive and negative ``[..., D]``; losses and weights the same without the
    last axis. Units: those of the embeddings.

    Args:
        graph: The graph to build in.
        anchor: Embeddings of the samples.
        positive: Embeddings of what is alike.
        negative: Embeddings of what is not.
        margin: By how much the negative has to be further away.
        swap: Take d(positive, negative) where it is less than d(anchor, negative).
        reduction: What becomes of the samples' losses.
        weighted: Take the input ``weights``, one a sample.
    """
    if not margin > 0:
        raise UsageError(f"margin is {margin}; it must be positive")
    if not anchor.shape:
        raise UsageError("anchor must have an axis of features")
    need_same_shape(anchor, positive, "anchor and positive")
    need_same_shape(anchor, negative, "anchor and negative")
    weights = sample_weights(graph, weighted, tuple(anchor.shape[:-1]))
    near = _distance(graph, anchor, positive)
    far = _distance(graph, anchor, negative)
    if swap:
        far = graph.op("Min", far, _distance(graph, positive, negative))
    losses = graph.op("Relu", graph.op("Add", graph.op("Sub", near, far), margin))
    return reduced(graph, losses, reduction, weights)


def _distance(graph: LossGraph, a: Variable, b: Variable) -> Variable:
    difference = graph.op("Add", graph.op("Sub", a, b), _OFFSET)
    squares = graph.op("Mul", difference, difference)
    return graph.op("Sqrt", graph.reduce("ReduceSum", squares, [-1]))
