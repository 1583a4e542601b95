"""All pairs of a batch: each sample's partner against everybody else's."""

from __future__ import annotations

from typing import Literal

from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.declaration import loss
from onnxfold.passes.loss.graph import LossGraph, Variable
from onnxfold.passes.loss.reduction import Reduction, collected
from onnxfold.passes.loss.shapes import need_rank
from onnxfold.passes.loss.similarity import diagonal_losses, normalized


@loss("all-pairs", tensors=("queries", "candidates"))
def all_pairs(
    graph: LossGraph,
    queries: Variable,
    candidates: Variable,
    *,
    over: Literal["candidates", "queries", "both"] = "candidates",
    similarity: Literal["dot", "cosine"] = "dot",
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Variable:
    """Softmax loss with in-batch negatives: log sum exp of all similarities - the own one.

    s_ij = q_i . c_j / temperature, of which s_ii is the positive. Over candidates: log sum_j
    exp s_ij - s_ii; over queries: log sum_i exp s_ij - s_jj; ``both`` is the mean of the two. The
    loss of a row of similarities that are all -inf is -inf, its gradient 0. A batch of one has no
    negatives: its loss is 0.

    Source: the all-pairs (InfoNCE, in-batch softmax) loss; over candidates it is
    torch.nn.functional.cross_entropy(Q C^T, arange(N)).

    Shapes: queries ``[N, D]``; candidates ``[M, D]``, M >= N, candidate i being the partner of
    query i and the others extra negatives; losses ``[N]``. Units: nats.

    Args:
        graph: The graph to build in.
        queries: q.
        candidates: c.
        over: What the positive is compared with.
        similarity: Inner products, or cosines.
        temperature: What similarities are divided by.
        reduction: What becomes of the samples' losses.
    """
    need_rank(queries, "queries", 2)
    need_rank(candidates, "candidates", 2)
    (rows, width), (columns, other) = queries.shape, candidates.shape
    if isinstance(width, int) and isinstance(other, int) and width != other:
        raise UsageError(f"queries have {width} numbers each, candidates {other}")
    if isinstance(rows, int) and isinstance(columns, int) and columns < rows:
        raise UsageError(f"{rows} queries have only {columns} candidates")
    if not temperature > 0:
        raise UsageError(f"temperature is {temperature}; it must be positive")
    count = graph.size(queries, 0)
    if similarity == "cosine":
        queries, candidates = normalized(graph, queries), normalized(graph, candidates)
    scores = graph.op("MatMul", queries, graph.op("Transpose", candidates, perm=[1, 0]))
    if temperature != 1:
        scores = graph.op("Div", scores, float(temperature))
    axes = {"candidates": (1,), "queries": (0,), "both": (1, 0)}[over]
    losses = [diagonal_losses(graph, scores, axis, count) for axis in axes]
    if len(losses) == 2:
        losses = [graph.op("Mul", graph.op("Add", *losses), 0.5)]
    return collected(graph, losses[0], reduction)
