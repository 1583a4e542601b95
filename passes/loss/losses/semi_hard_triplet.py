"""Triplet loss with semi-hard negatives found in the batch."""

from __future__ import annotations

import math
from typing import Literal

from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.cross_entropy import labels_input
from onnxfold.passes.loss.declaration import loss
from onnxfold.passes.loss.graph import LossGraph, Variable
from onnxfold.passes.loss.reduction import collected
from onnxfold.passes.loss.shapes import need_rank
from onnxfold.passes.loss.similarity import positions


@loss("semi-hard-triplet", tensors=("embeddings",))
def semi_hard_triplet(
    graph: LossGraph,
    embeddings: Variable,
    *,
    margin: float = 1.0,
    distance: Literal["euclidean", "squared"] = "euclidean",
    reduction: Literal["mean", "sum"] = "mean",
) -> Variable:
    """max(d(a, p) - d(a, n) + margin, 0) for all pairs a, p of one label, n semi-hard.

    n is the nearest sample of another label that is further from a than p is; the furthest of
    another label where none is. The mean is over the pairs; it is 0 without any pair, or where
    all labels are one. Memory grows with the third power of the batch.

    Source: Schroff et al., FaceNet; tfa.losses.triplet_semihard_loss.

    Shapes: embeddings ``[N, D]``, the int64 input ``labels`` ``[N]``; one number for the batch.
    Units: those of the embeddings, or their squares.

    Args:
        graph: The graph to build in.
        embeddings: One vector a sample.
        margin: By how much the negative has to be further away.
        distance: Euclidean distance, or its square.
        reduction: What becomes of the pairs' losses.
    """
    need_rank(embeddings, "embeddings", 2)
    if not margin > 0:
        raise UsageError(f"margin is {margin}; it must be positive")
    labels = labels_input(graph, (embeddings.shape[0],))
    distances = _distances(graph, embeddings, distance)
    is_alike = graph.op(
        "Equal", graph.op("Unsqueeze", labels, [1]), graph.op("Unsqueeze", labels, [0])
    )
    is_other = graph.op("Not", is_alike)
    order = positions(graph, graph.size(embeddings, 0))
    is_same = graph.op(
        "Equal", graph.op("Unsqueeze", order, [1]), graph.op("Unsqueeze", order, [0])
    )
    is_pair = graph.op("And", is_alike, graph.op("Not", is_same))

    negatives = _semi_hard(graph, distances, is_other)
    is_counted = graph.op("And", is_pair, graph.op("Greater", negatives, -math.inf))
    losses = graph.op("Relu", graph.op("Add", graph.op("Sub", distances, negatives), margin))
    losses = graph.op("Where", is_counted, losses, 0.0)
    return collected(graph, losses, reduction, graph.cast(is_counted))


def _distances(graph: LossGraph, x: Variable, kind: str) -> Variable:
    """[N, N]: of all samples to all samples, with a gradient of 0 where it is 0."""
    squares = graph.reduce("ReduceSum", graph.op("Mul", x, x), [1], keepdims=True)
    products = graph.op("MatMul", x, graph.op("Transpose", x, perm=[1, 0]))
    both = graph.op("Add", squares, graph.op("Transpose", squares, perm=[1, 0]))
    square = graph.op("Relu", graph.op("Sub", both, graph.op("Mul", products, 2.0)))
    if kind == "squared":
        return square
    is_zero = graph.op("Equal", square, 0.0)
    root = graph.op("Sqrt", graph.op("Where", is_zero, 1.0, square))
    return graph.op("Where", is_zero, 0.0, root)


def _semi_hard(graph: LossGraph, distances: Variable, is_other: Variable) -> Variable:
    """[anchor, positive]: the distance of the negative; -inf where there is none."""
    to_negative = graph.op("Unsqueeze", distances, [1])
    is_negative = graph.op("Unsqueeze", is_other, [1])
    is_further = graph.op("Greater", to_negative, graph.op("Unsqueeze", distances, [2]))
    is_outside = graph.op("And", is_negative, is_further)
    outside = graph.op("Where", is_outside, to_negative, math.inf)
    nearest = graph.reduce("ReduceMin", outside, [2])
    others = graph.op("Where", is_other, distances, -math.inf)
    furthest = graph.reduce("ReduceMax", others, [1], keepdims=True)
    return graph.op("Where", graph.op("Less", nearest, math.inf), nearest, furthest)
