"""Mutual information of clusters and labels."""

from __future__ import annotations

from typing import Literal

from onnxfold.passes.loss.contingency import contingency, shared_information
from onnxfold.passes.loss.declaration import loss
from onnxfold.passes.loss.graph import LossGraph, Variable


@loss("mutual-information", better="higher", scores="probabilities")
def mutual_information(
    graph: LossGraph,
    predictions: Variable,
    *,
    classes: int = 0,
    assignments: Literal["soft", "hard"] = "soft",
    soft_targets: bool = False,
    from_logits: bool = False,
) -> Variable:
    """I = sum J (log J - log p_y - log p_c), J = Y^T C / N the joint distribution in the batch.

    Y are the labels, one-hot, and C the probabilities of the clusters; 0 log 0 = 0. A label that
    is no class makes it NaN.

    Source: sklearn.metrics.mutual_info_score, which it equals on hard assignments.

    Shapes: predictions ``[N, clusters]``; the int64 input ``labels`` ``[N]``, or ``targets``
    ``[N, classes]``; one number for the batch. Units: nats.

    Args:
        graph: The graph to build in.
        predictions: Probabilities of clusters; rows sum to 1.
        classes: How many labels there are; 0 for as many as clusters.
        assignments: ``hard`` takes the likeliest cluster of each sample, and has no gradient.
        soft_targets: Take the input ``targets``, rows of probabilities, instead of ``labels``.
        from_logits: The predictions are logits, of which the softmax is taken.
    """
    shared = contingency(
        graph,
        predictions,
        classes=classes,
        assignments=assignments,
        soft_targets=soft_targets,
        from_logits=from_logits,
    )
    return shared_information(graph, shared)
