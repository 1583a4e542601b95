"""Binary cross-entropy of logits."""

from __future__ import annotations

from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.binary import binary_cross_entropy
from onnxfold.passes.loss.cross_entropy import safe_log
from onnxfold.passes.loss.declaration import loss
from onnxfold.passes.loss.graph import LossGraph, Variable
from onnxfold.passes.loss.reduction import Reduction, reduced, sample_weights


@loss("bce-with-logits", tensors=("logits",), scores="logits")
def bce_with_logits(
    graph: LossGraph,
    logits: Variable,
    *,
    reduction: Reduction = "mean",
    positive_weight: float = 1.0,
    weighted: bool = False,
    from_probabilities: bool = False,
) -> Variable:
    """Binary cross-entropy of logits x with targets t in [0, 1]: w t sp(-x) + (1 - t) sp(x).

    Here sp is Softplus, log(1 + e^x), whose gradient is right everywhere, at 0 too.

    Source: torch.nn.functional.binary_cross_entropy_with_logits and
    tf.nn.sigmoid_cross_entropy_with_logits; with weights the weighted mean.

    Shapes: logits, targets and weights of any one shape. Units: nats.

    Args:
        graph: The graph to build in.
        logits: Log-odds.
        reduction: What becomes of the elements' losses.
        positive_weight: w, the weight of targets of 1 against those of 0.
        weighted: Take the input ``weights``.
        from_probabilities: The tensor holds probabilities p, raised to 1e-37 before the logarithm.
    """
    if not positive_weight > 0:
        raise UsageError(f"positive weight is {positive_weight}; it must be positive")
    targets = graph.data_input("targets", graph.dtype, logits.shape)
    weights = sample_weights(graph, weighted, logits.shape)
    if from_probabilities:
        losses = _of_probabilities(graph, logits, targets, positive_weight)
    else:
        losses = binary_cross_entropy(graph, logits, targets, positive_weight)
    return reduced(graph, losses, reduction, weights)


def _of_probabilities(
    graph: LossGraph, p: Variable, targets: Variable, positive_weight: float
) -> Variable:
    hit = graph.op("Mul", targets, safe_log(graph, p))
    hit = graph.op("Mul", hit, positive_weight)
    rest = graph.op("Sub", 1.0, targets)
    right = graph.op("Mul", rest, safe_log(graph, graph.op("Sub", 1.0, p)))
    return graph.op("Neg", graph.op("Add", hit, right))
