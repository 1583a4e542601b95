"""Distillation: a student model's logits against its teacher's."""

from __future__ import annotations

from typing import Literal

from onnxfold.passes.errors import UsageError
from onnxfold.passes.loss.cross_entropy import class_axis, log_probabilities
from onnxfold.passes.loss.declaration import loss
from onnxfold.passes.loss.graph import LossGraph, Variable
from onnxfold.passes.loss.losses.sparse_softmax_cross_entropy import sparse_softmax_cross_entropy
from onnxfold.passes.loss.reduction import Reduction, collected


@loss("distillation", tensors=("student",), scores="logits")
def distillation(
    graph: LossGraph,
    student: Variable,
    *,
    axis: int = -1,
    kind: Literal["kl", "mse"] = "kl",
    temperature: float = 1.0,
    alpha: float = 1.0,
    reduction: Reduction = "mean",
) -> Variable:
    """Divergence from the teacher, and cross-entropy with labels.

    alpha T^2 KL(softmax(teacher / T), softmax(student / T)) + (1 - alpha) cross-entropy.

    ``kind=mse`` puts the mean over classes of (student - teacher)^2 for the first term. With
    alpha = 1 there are no labels.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network; mse: Ba and Caruana, Do
    Deep Nets Really Need to be Deep.

    Shapes: student and the input ``teacher`` ``[..., C, ...]``; losses, and the int64 input
    ``labels``, the same without ``axis``. Units: nats, or squared logits.

    Args:
        graph: The graph to build in.
        student: Logits of the model.
        axis: The axis of classes.
        kind: How student and teacher are compared.
        temperature: T; no part of ``kind=mse``.
        alpha: The teacher's weight against the labels'.
        reduction: What becomes of the samples' losses.
    """
    axis = class_axis(student, axis)
    if not 0 < alpha <= 1:
        raise UsageError(f"alpha is {alpha}; it must be in (0, 1]")
    teacher = graph.data_input("teacher", graph.dtype, student.shape)
    losses = (
        _divergence(graph, student, teacher, axis, temperature)
        if kind == "kl"
        else _square(graph, student, teacher, axis)
    )
    if alpha < 1:
        hard = sparse_softmax_cross_entropy(graph, student, axis=axis, reduction="none")
        soft = graph.op("Mul", losses, float(alpha))
        losses = graph.op("Add", soft, graph.op("Mul", hard, 1 - alpha))
    return collected(graph, losses, reduction)


def _divergence(
    graph: LossGraph, student: Variable, teacher: Variable, axis: int, temperature: float
) -> Variable:
    log_q = log_probabilities(graph, student, axis, temperature=temperature)
    log_p = log_probabilities(graph, teacher, axis, temperature=temperature)
    p = graph.op("Exp", log_p)
    # Classes that are masked by -inf in both would be 0 (-inf + inf).
    is_absent = graph.op("Equal", p, 0.0)
    difference = graph.op("Where", is_absent, 0.0, graph.op("Sub", log_p, log_q))
    sums = graph.reduce("ReduceSum", graph.op("Mul", p, difference), [axis])
    return sums if temperature == 1 else graph.op("Mul", sums, temperature * temperature)


def _square(graph: LossGraph, student: Variable, teacher: Variable, axis: int) -> Variable:
    difference = graph.op("Sub", student, teacher)
    return graph.reduce("ReduceMean", graph.op("Mul", difference, difference), [axis])
