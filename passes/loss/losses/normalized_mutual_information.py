"""Normalized mutual information of clusters and labels."""

from __future__ import annotations

from typing import Literal

from onnxfold.passes.loss.contingency import contingency, entropy, shared_information
from onnxfold.passes.loss.declaration import loss
from onnxfold.passes.loss.graph import LossGraph, Variable

_NO_ENTROPY = 1e-12


@loss("normalized-mutual-information", better="higher", scores="probabilities")
def normalized_mutual_information(
    graph: LossGraph,
    predictions: Variable,
    *,
    classes: int = 0,
    assignments: Literal["soft", "hard"] = "soft",
    soft_targets: bool = False,
    from_logits: bool = False,
) -> Variable:
    """2 I / (H_y + H_c): mutual information over the mean of the two entropies.

    I is that of ``mutual-information``. Where both entropies vanish it is 1, as scikit-learn has
    it, with a gradient of 0. A label that is no class makes it NaN.

    Source: sklearn.metrics.normalized_mutual_info_score, which it equals on hard assignments.

    Shapes: predictions ``[N, clusters]``; the int64 input ``labels`` ``[N]``, or ``targets``
    ``[N, classes]``; one number for the batch. Unit: none; 0 to 1.

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
    information = graph.op("Mul", shared_information(graph, shared), 2.0)
    entropies = graph.op("Add", entropy(graph, shared.labels), entropy(graph, shared.clusters))
    is_certain = graph.op("LessOrEqual", entropies, _NO_ENTROPY)
    ratio = graph.op("Div", information, graph.op("Where", is_certain, 1.0, entropies))
    return graph.op("Where", is_certain, 1.0, ratio)
