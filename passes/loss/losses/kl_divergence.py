"""Kullback-Leibler divergence between two distributions over classes."""

from __future__ import annotations

from typing import Literal

from onnxfold.passes.loss.cross_entropy import class_axis, log_probabilities, safe_log
from onnxfold.passes.loss.declaration import loss
from onnxfold.passes.loss.graph import LossGraph, Variable
from onnxfold.passes.loss.reduction import collected


@loss("kl-divergence", scores="logits")
def kl_divergence(
    graph: LossGraph,
    predictions: Variable,
    *,
    axis: int = -1,
    direction: Literal["forward", "reverse"] = "forward",
    reduction: Literal["none", "batchmean", "mean", "sum"] = "batchmean",
    temperature: float = 1.0,
    from_probabilities: bool = False,
    from_log_probabilities: bool = False,
    log_targets: bool = False,
) -> Variable:
    """KL divergence of targets p and predictions q: p (log p - log q) per element, 0 log 0 = 0.

    The sum over the classes is the divergence of a sample. ``direction=reverse`` exchanges p and
    q.

    Source: torch.nn.functional.kl_div, which takes (log q, p) and is what
    ``from-log-probabilities`` gives; ``mean`` divides by the number of elements as it does,
    ``batchmean`` by the number of samples (the length of the first axis).

    Shapes: predictions and targets of any one shape. Units: nats.

    Args:
        graph: The graph to build in.
        predictions: Logits, of which the softmax is q.
        axis: The axis of classes.
        direction: ``forward`` for KL(p, q), ``reverse`` for KL(q, p).
        reduction: What becomes of the elements; ``none`` leaves them.
        temperature: What logits are divided by.
        from_probabilities: The tensor holds q, raised to 1e-37 before the logarithm.
        from_log_probabilities: The tensor holds log q.
        log_targets: The input ``targets`` holds log p.
    """
    axis = class_axis(predictions, axis)
    targets = graph.data_input("targets", graph.dtype, predictions.shape)
    log_q = log_probabilities(
        graph,
        predictions,
        axis,
        from_probabilities=from_probabilities,
        from_log_probabilities=from_log_probabilities,
        temperature=temperature,
    )
    log_p = targets if log_targets else safe_log(graph, targets)
    if direction == "reverse":
        q = predictions if from_probabilities else graph.op("Exp", log_q)
        elements = _terms(graph, q, log_q, log_p)
    else:
        p = graph.op("Exp", targets) if log_targets else targets
        elements = _terms(graph, p, log_p, log_q)
    if reduction != "batchmean":
        return collected(graph, elements, reduction)
    total = graph.reduce("ReduceSum", elements)
    return graph.op("Div", total, graph.cast(graph.size(predictions, 0)))


def _terms(graph: LossGraph, p: Variable, log_p: Variable, log_q: Variable) -> Variable:
    """The terms p (log p - log q), 0 where p is 0."""
    is_absent = graph.op("Equal", p, 0.0)
    difference = graph.op("Sub", log_p, log_q)
    return graph.op("Mul", p, graph.op("Where", is_absent, 0.0, difference))
