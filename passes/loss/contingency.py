"""Joint distributions of clusters and labels, and the information they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.cross_entropy import guarded_labels, labels_input, safe_log
from onnxfold.passes.loss.graph import LossGraph, Variable
from onnxfold.passes.loss.shapes import need_rank
from onnxfold.passes.loss.similarity import positions


@dataclass(frozen=True)
class Contingency:
    """Probabilities of labels y and clusters c in a batch.

    Attributes:
        joint: p(y, c), ``[labels, clusters]``.
        labels: p(y), ``[labels, 1]``.
        clusters: p(c), ``[1, clusters]``.
    """

    joint: Variable
    labels: Variable
    clusters: Variable


def contingency(
    graph: LossGraph,
    predictions: Variable,
    *,
    classes: int,
    assignments: Literal["soft", "hard"],
    soft_targets: bool,
    from_logits: bool,
) -> Contingency:
    """J = Y^T C / N of labels Y and clusters C; a label that is no class makes it all NaN.

    Args:
        graph: The graph to build in.
        predictions: [N, clusters].
        classes: How many labels there are; 0 for as many as clusters.
        assignments: Take the probabilities of clusters, or the likeliest cluster alone.
        soft_targets: The labels are rows of probabilities instead of integers.
        from_logits: The predictions are logits.

    Raises:
        UsageError: The predictions have another rank, or ``classes`` is negative.
    """
    need_rank(predictions, "cluster probabilities", 2)
    if classes < 0:
        raise UsageError(f"classes is {classes}; it must be positive, or 0 for as many as clusters")
    batch, clusters = predictions.shape
    if soft_targets:
        targets = graph.data_input("targets", graph.dtype, (batch, classes or clusters))
    else:
        count = (
            graph.constant(classes, ir.DataType.INT64) if classes else graph.size(predictions, 1)
        )
        targets = _one_hot_labels(graph, labels_input(graph, (batch,)), count)
    if assignments == "hard":
        likeliest = graph.op("ArgMax", predictions, axis=1, keepdims=1)
        columns = positions(graph, graph.size(predictions, 1))
        members = graph.cast(graph.op("Equal", likeliest, columns))
    else:
        members = graph.op("Softmax", predictions, axis=1) if from_logits else predictions
    sums = graph.op("MatMul", graph.op("Transpose", targets, perm=[1, 0]), members)
    joint = graph.op("Div", sums, graph.cast(graph.size(predictions, 0)))
    return Contingency(
        joint,
        graph.reduce("ReduceSum", joint, [1], keepdims=True),
        graph.reduce("ReduceSum", joint, [0], keepdims=True),
    )


def shared_information(graph: LossGraph, of: Contingency) -> Variable:
    """I = sum J (log J - log p_y - log p_c) in nats; 0 log 0 = 0."""
    excess = graph.op("Sub", safe_log(graph, of.joint), safe_log(graph, of.labels))
    excess = graph.op("Sub", excess, safe_log(graph, of.clusters))
    return graph.reduce("ReduceSum", graph.op("Mul", of.joint, excess))


def entropy(graph: LossGraph, p: Variable) -> Variable:
    """-sum p log p in nats; 0 log 0 = 0."""
    return graph.op("Neg", graph.reduce("ReduceSum", graph.op("Mul", p, safe_log(graph, p))))


def _one_hot_labels(graph: LossGraph, labels: Variable, count: Variable) -> Variable:
    safe, guard = guarded_labels(graph, labels, count)
    is_label = graph.op("Equal", graph.op("Unsqueeze", safe, [1]), positions(graph, count))
    return graph.op("Mul", graph.cast(is_label), graph.op("Unsqueeze", guard, [1]))
