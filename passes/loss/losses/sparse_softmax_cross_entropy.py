"""Cross-entropy of logits with integer labels."""

from __future__ import annotations

from typing import Literal

import numpy as np

from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.cross_entropy import (
    class_axis,
    guarded_labels,
    labels_input,
    log_probabilities,
    picked,
    without_axis,
)
from onnxfold.passes.loss.declaration import loss
from onnxfold.passes.loss.graph import LossGraph, Variable
from onnxfold.passes.loss.reduction import Reduction, collected, sample_weights


@loss("sparse-softmax-cross-entropy", tensors=("logits",), scores="logits")
def sparse_softmax_cross_entropy(
    graph: LossGraph,
    logits: Variable,
    *,
    axis: int = -1,
    reduction: Reduction = "mean",
    ignore_index: int | None = None,
    class_weights: tuple[float, ...] = (),
    weighted: bool = False,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    from_probabilities: bool = False,
    label_dtype: Literal["int64", "int32"] = "int64",
) -> Variable:
    """Softmax cross-entropy with integer labels: m = max x; log sum exp(x - m) - (x_label - m).

    Source: tf.nn.sparse_softmax_cross_entropy_with_logits with ``reduction=none``; the other
    options as torch.nn.functional.cross_entropy has them, where ``mean`` divides by the weights of
    the labels that are not ignored. A mean over nothing is 0.

    A label that is no class makes its loss and its gradient NaN, and with it the mean; it never
    silently takes another class.

    Shapes: logits ``[..., C, ...]``, labels and weights the same without ``axis``. Units: nats.

    Args:
        graph: The graph to build in.
        logits: Unnormalised scores, C of them along ``axis``.
        axis: The axis of classes: -1, as TensorFlow has it; 1 for NCHW.
        reduction: What becomes of the labels' losses.
        ignore_index: A label that does not count; it may lie outside the classes.
        class_weights: One weight a class.
        weighted: Take the input ``weights``, one a label.
        label_smoothing: This share of each label is spread evenly over all classes.
        temperature: What logits are divided by.
        from_probabilities: The tensor holds probabilities: -log(max(p, 1e-37)), not normalised
            again. Keras clips to [1e-7, 1 - 1e-7] and normalises: a different number.
        label_dtype: The dtype of the input ``labels``.
    """
    axis = class_axis(logits, axis)
    classes = logits.shape[axis]
    if class_weights and isinstance(classes, int) and len(class_weights) != classes:
        raise UsageError(f"{len(class_weights)} class weights for {classes} classes")
    if not 0 <= label_smoothing <= 1:
        raise UsageError(f"label smoothing is {label_smoothing}; it must be in [0, 1]")
    shape = without_axis(logits, axis)
    labels = labels_input(graph, shape, label_dtype)
    weights = sample_weights(graph, weighted, shape)

    log_p = log_probabilities(
        graph, logits, axis, from_probabilities=from_probabilities, temperature=temperature
    )
    counted, is_kept = weights, None
    if ignore_index is not None:
        is_kept = graph.op("Not", graph.op("Equal", labels, ignore_index))
        labels = graph.op("Where", is_kept, labels, 0)
        counted = _product(graph, counted, graph.cast(is_kept))
    safe, guard = guarded_labels(graph, labels, graph.size(logits, axis))
    losses = graph.op("Mul", graph.op("Neg", picked(graph, log_p, safe, axis)), guard)
    if class_weights:
        table = graph.constant(class_weights)
        label_weights = graph.op("Gather", table, safe)
        losses = graph.op("Mul", losses, label_weights)
        counted = _product(graph, counted, label_weights)
    if label_smoothing:
        evenly = _even_loss(graph, log_p, axis, len(logits.shape), class_weights)
        kept_share = graph.op("Mul", losses, 1 - label_smoothing)
        losses = graph.op("Add", kept_share, graph.op("Mul", evenly, label_smoothing))
    if is_kept is not None:
        losses = graph.op("Where", is_kept, losses, 0.0)
    if weights is not None:
        losses = graph.op("Mul", losses, weights)
    return collected(graph, losses, reduction, counted)


def _even_loss(
    graph: LossGraph, log_p: Variable, axis: int, rank: int, class_weights: tuple[float, ...]
) -> Variable:
    """The cross-entropy with labels that are spread evenly over all classes."""
    if class_weights:
        shape = [1] * rank
        shape[axis] = len(class_weights)
        log_p = graph.op("Mul", log_p, graph.constant(np.reshape(class_weights, shape)))
    return graph.op("Neg", graph.reduce("ReduceMean", log_p, [axis]))


def _product(graph: LossGraph, a: Variable | None, b: Variable) -> Variable:
    return b if a is None else graph.op("Mul", a, b)
