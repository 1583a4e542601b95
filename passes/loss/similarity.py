"""Cosines and inner products of rows, and the softmax losses on them."""

from __future__ import annotations

from onnxfold.passes.loss.cross_entropy import picked
from onnxfold.passes.loss.graph import LossGraph, Variable

_LEAST_SQUARE = 1e-30


def normalized(graph: LossGraph, x: Variable) -> Variable:
    """Rows of length one: x / sqrt(max(sum x^2, 1e-30)); a row of zeros stays one, gradient 0."""
    squares = graph.reduce("ReduceSum", graph.op("Mul", x, x), [-1], keepdims=True)
    return graph.op("Div", x, graph.op("Sqrt", graph.op("Max", squares, _LEAST_SQUARE)))


def positions(graph: LossGraph, count: Variable) -> Variable:
    """0, 1, ... count - 1 as int64."""
    return graph.op("Range", 0, count, 1)


def diagonal_losses(graph: LossGraph, scores: Variable, axis: int, count: Variable) -> Variable:
    """-log softmax over ``axis`` at (i, i), for i < count; -inf where all scores are -inf.

    Args:
        graph: The graph to build in.
        scores: ``count`` rows and at least as many columns.
        axis: What the softmax is over.
        count: An int64 scalar.
    """
    largest = graph.reduce("ReduceMax", scores, [axis], keepdims=True)
    is_empty = graph.op("Equal", largest, float("-inf"))
    log_p = graph.op("LogSoftmax", graph.op("Where", is_empty, 0.0, scores), axis=axis)
    log_p = graph.op("Where", is_empty, float("inf"), log_p)
    return graph.op("Neg", picked(graph, log_p, positions(graph, count), 1))
