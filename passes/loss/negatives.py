"""Cosines of queries with their documents, and with documents of other samples as negatives."""

from __future__ import annotations

import math

from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.graph import LossGraph, Variable
from onnxfold.passes.loss.shapes import need_rank, need_same_shape
from onnxfold.passes.loss.similarity import normalized, positions


def cosines_with_negatives(
    graph: LossGraph, queries: Variable, documents: Variable, shift: int, negatives: int
) -> Variable:
    """[N, 1 + K]: cos(x_j, y_j), then cos(x_j, y_((j + shift + m - 1) mod N)) for m = 1 .. K.

    Where the batch is dynamic and too small for its negatives, all values are NaN.

    Raises:
        UsageError: The positive would come back as a negative.
    """
    need_rank(queries, "queries", 2)
    need_same_shape(queries, documents, "queries and documents")
    if shift < 1 or negatives < 1:
        raise UsageError(f"shift is {shift} and negatives {negatives}; both must be at least 1")
    last = shift + negatives - 1
    batch = queries.shape[0]
    if isinstance(batch, int) and last >= batch:
        raise UsageError(
            f"shift {shift} + negatives {negatives} - 1 must be less than the batch of {batch}: "
            "otherwise the positive is among its own negatives"
        )
    count = graph.size(queries, 0)
    offsets = [[0, *range(shift, last + 1)]]
    rows = graph.op("Unsqueeze", positions(graph, count), [1])
    others = graph.op("Mod", graph.op("Add", rows, offsets), count)
    chosen = graph.op("Gather", normalized(graph, documents), others, axis=0)
    own = graph.op("Unsqueeze", normalized(graph, queries), [1])
    cosines = graph.reduce("ReduceSum", graph.op("Mul", own, chosen), [-1])
    if isinstance(batch, int):
        return cosines
    is_enough = graph.op("Greater", count, last)
    return graph.op("Mul", cosines, graph.op("Where", is_enough, 1.0, math.nan))
