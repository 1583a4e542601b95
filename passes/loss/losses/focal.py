"""Focal loss."""

from __future__ import annotations

from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.binary import binary_cross_entropy
from onnxfold.passes.loss.declaration import loss
from onnxfold.passes.loss.graph import LossGraph, Variable
from onnxfold.passes.loss.reduction import Reduction, reduced, sample_weights


@loss("focal", tensors=("logits",), scores="logits")
def focal(
    graph: LossGraph,
    logits: Variable,
    *,
    gamma: float = 2.0,
    alpha: float = 0.25,
    reduction: Reduction = "mean",
    weighted: bool = False,
) -> Variable:
    """Binary cross-entropy times alpha_t (1 - p_t)^gamma: what is easy already counts little.

    p_t is the probability of the target, alpha_t is alpha for targets of 1 and 1 - alpha for
    targets of 0. The factor is exp(-gamma b), b the cross-entropy with the opposite target: it has
    a gradient everywhere, for any gamma.

    Source: Lin et al., Focal Loss for Dense Object Detection; on targets of 0 and 1 as
    torchvision.ops.sigmoid_focal_loss has it.

    Shapes: logits, targets and weights of any one shape. Units: nats.

    Args:
        graph: The graph to build in.
        logits: Log-odds.
        gamma: How fast easy elements lose weight; 0 for none.
        alpha: Weight of targets of 1; a negative number for no such weights.
        reduction: What becomes of the elements' losses.
        weighted: Take the input ``weights``.
    """
    if not gamma >= 0 or not alpha <= 1:
        raise UsageError(
            f"gamma is {gamma} and alpha {alpha}; gamma >= 0 and alpha <= 1 are needed"
        )
    targets = graph.data_input("targets", graph.dtype, logits.shape)
    weights = sample_weights(graph, weighted, logits.shape)
    losses = binary_cross_entropy(graph, logits, targets)
    if gamma:
        opposite = binary_cross_entropy(graph, graph.op("Neg", logits), targets)
        factor = graph.op("Exp", graph.op("Mul", opposite, -gamma))
        losses = graph.op("Mul", losses, factor)
    if alpha >= 0:
        slope = graph.op("Mul", targets, 2 * alpha - 1)
        losses = graph.op("Mul", losses, graph.op("Add", slope, 1 - alpha))
    return reduced(graph, losses, reduction, weights)
