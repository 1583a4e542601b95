"""CNTK's cosine distance with negative samples."""

from __future__ import annotations

from typing import Literal

from onnxfold.passes.loss.declaration import loss
from onnxfold.passes.loss.graph import LossGraph, Variable
from onnxfold.passes.loss.negatives import cosines_with_negatives


@loss("cosine-distance-with-negative-samples", tensors=("queries", "documents"), better="higher")
def cosine_distance_with_negative_samples(
    graph: LossGraph,
    queries: Variable,
    documents: Variable,
    *,
    shift: int = 1,
    negatives: int = 1,
    output: Literal["similarities", "margin"] = "similarities",
) -> Variable:
    """Cosines of each query with its document, and with documents of other samples.

    out[j, 0] = cos(x_j, y_j); out[j, m] = cos(x_j, y_((j + shift + m - 1) mod N)), m = 1 .. K.
    ``shift`` is where the negatives begin, not a stride. To train on it take
    ``cosine-softmax-with-negative-samples``.

    A dynamic batch that is too small for its negatives makes all values NaN. A vector of zeros
    has the cosine 0 with anything.

    Source: CNTK, cosine_distance_with_negative_samples.

    Shapes: queries x and documents y ``[N, D]``; similarities ``[N, 1 + K]``. Unit: none.

    Args:
        graph: The graph to build in.
        queries: x.
        documents: y, row j belonging to query j.
        shift: The first negative's distance in the batch.
        negatives: K.
        output: ``similarities``, or one number: the mean cosine with the own document minus the
            mean cosine with the negatives.
    """
    cosines = cosines_with_negatives(graph, queries, documents, shift, negatives)
    if output == "similarities":
        return cosines
    weights = [[1.0] + [-1 / negatives] * negatives]
    margins = graph.reduce("ReduceSum", graph.op("Mul", cosines, graph.constant(weights)), [1])
    return graph.reduce("ReduceMean", margins)
