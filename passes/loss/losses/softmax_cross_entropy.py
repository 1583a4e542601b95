"""Cross-entropy of logits with a distribution over the classes."""

from __future__ import annotations

from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.cross_entropy import class_axis, log_probabilities, without_axis
from onnxfold.passes.loss.declaration import loss
from onnxfold.passes.loss.graph import LossGraph, Variable
from onnxfold.passes.loss.reduction import Reduction, reduced, sample_weights


@loss("softmax-cross-entropy", tensors=("logits",), scores="logits")
def softmax_cross_entropy(
    graph: LossGraph,
    logits: Variable,
    *,
    axis: int = -1,
    reduction: Reduction = "mean",
    weighted: bool = False,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    from_probabilities: bool = False,
) -> Variable:
    """Softmax cross-entropy with soft labels t: -sum t log softmax(x), over the classes.

    A class with t = 0 counts nothing, even where its logit is -inf.

    Source: tf.nn.softmax_cross_entropy_with_logits with ``reduction=none``, and
    torch.nn.functional.cross_entropy with class probabilities.

    Shapes: logits and targets ``[..., C, ...]``; losses and weights the same without ``axis``.
    Units: nats.

    Args:
        graph: The graph to build in.
        logits: Unnormalised scores, C of them along ``axis``.
        axis: The axis of classes.
        reduction: What becomes of the samples' losses; the mean is over samples.
        weighted: Take the input ``weights``, one a sample.
        label_smoothing: This share of each label is spread evenly over all classes.
        temperature: What logits are divided by.
        from_probabilities: The tensor holds probabilities, raised to 1e-37 before the logarithm.
    """
    axis = class_axis(logits, axis)
    if not 0 <= label_smoothing <= 1:
        raise UsageError(f"label smoothing is {label_smoothing}; it must be in [0, 1]")
    targets = graph.data_input("targets", graph.dtype, logits.shape)
    weights = sample_weights(graph, weighted, without_axis(logits, axis))
    log_p = log_probabilities(
        graph, logits, axis, from_probabilities=from_probabilities, temperature=temperature
    )
    if label_smoothing:
        share = graph.op("Div", label_smoothing, graph.cast(graph.size(logits, axis)))
        targets = graph.op("Add", graph.op("Mul", targets, 1 - label_smoothing), share)
    is_absent = graph.op("Equal", targets, 0.0)
    products = graph.op("Mul", targets, graph.op("Where", is_absent, 0.0, log_p))
    losses = graph.op("Neg", graph.reduce("ReduceSum", products, [axis]))
    return reduced(graph, losses, reduction, weights)
