"""The softmax loss on cosines with negative samples."""

from __future__ import annotations

from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.declaration import loss
from onnxfold.passes.loss.graph import LossGraph, Variable
from onnxfold.passes.loss.negatives import cosines_with_negatives
from onnxfold.passes.loss.reduction import Reduction, collected


@loss("cosine-softmax-with-negative-samples", tensors=("queries", "documents"))
def cosine_softmax_with_negative_samples(
    graph: LossGraph,
    queries: Variable,
    documents: Variable,
    *,
    shift: int = 1,
    negatives: int = 1,
    gamma: float = 10.0,
    reduction: Reduction = "mean",
) -> Variable:
    """Softmax cross-entropy of gamma times the cosines, the own document being the right class.

    -log softmax(gamma out[j])_0, out as ``cosine-distance-with-negative-samples`` has it.

    Source: Huang et al., Learning Deep Structured Semantic Models (DSSM); CNTK.

    Shapes: queries and documents ``[N, D]``; losses ``[N]``. Units: nats.

    Args:
        graph: The graph to build in.
        queries: One vector a sample.
        documents: Row j belongs to query j.
        shift: The first negative's distance in the batch.
        negatives: How many negatives each query has.
        gamma: What cosines are multiplied by.
        reduction: What becomes of the samples' losses.
    """
    if not gamma > 0:
        raise UsageError(f"gamma is {gamma}; it must be positive")
    cosines = cosines_with_negatives(graph, queries, documents, shift, negatives)
    log_p = graph.op("LogSoftmax", graph.op("Mul", cosines, gamma), axis=1)
    own = graph.op("Gather", log_p, 0, axis=1)
    return collected(graph, graph.op("Neg", own), reduction)
