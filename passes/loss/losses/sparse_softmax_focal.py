"""Focal loss of logits with integer labels."""

from __future__ import annotations

from typing import Literal

from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.cross_entropy import safe_log
from onnxfold.passes.loss.declaration import loss
from onnxfold.passes.loss.graph import LossGraph, Variable
from onnxfold.passes.loss.losses.sparse_softmax_cross_entropy import sparse_softmax_cross_entropy
from onnxfold.passes.loss.reduction import Reduction, collected


@loss("sparse-softmax-focal", tensors=("logits",), scores="logits")
def sparse_softmax_focal(
    graph: LossGraph,
    logits: Variable,
    *,
    gamma: float = 2.0,
    axis: int = -1,
    reduction: Reduction = "mean",
    label_dtype: Literal["int64", "int32"] = "int64",
) -> Variable:
    """Softmax cross-entropy times (1 - p_label)^gamma: what is easy already counts little.

    A label that is no class makes its loss and its gradient NaN. For one logit a class, each
    decided by itself, take ``focal``.

    Source: Lin et al., Focal Loss for Dense Object Detection, over a softmax.

    Shapes: logits ``[..., C, ...]``, labels the same without ``axis``. Units: nats.

    Args:
        graph: The graph to build in.
        logits: Unnormalised scores, C of them along ``axis``.
        gamma: How fast easy samples lose weight; 0 for none.
        axis: The axis of classes.
        reduction: What becomes of the labels' losses.
        label_dtype: The dtype of the input ``labels``.
    """
    if not gamma >= 0:
        raise UsageError(f"gamma is {gamma}; it must not be negative")
    losses = sparse_softmax_cross_entropy(
        graph, logits, axis=axis, reduction="none", label_dtype=label_dtype
    )
    if gamma:
        missed = graph.op("Sub", 1.0, graph.op("Exp", graph.op("Neg", losses)))
        factor = graph.op("Exp", graph.op("Mul", safe_log(graph, missed), float(gamma)))
        losses = graph.op("Mul", losses, factor)
    return collected(graph, losses, reduction)
