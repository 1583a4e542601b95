"""Gradients of the standard's losses of classes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.grad.builder import Builder, dtype_of, rank_of
from onnxfold.passes.grad.vjp import Call, Gradients, vjp

_CLASSES = 1
"""The axis of the classes."""


@vjp("NegativeLogLikelihoodLoss")
def negative_log_likelihood(call: Call, b: Builder) -> Gradients:
    """d(-w_l x_l): -w at the right class, by the sum of all w for a mean."""
    return (b.masked(_is_right(call, b), b.neg(_of_each(call, b, call.gradient))),)


@vjp("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy(call: Call, b: Builder) -> Gradients:
    """d(-w_l log softmax(x)_l) = w (softmax(x) - 1 at the right class) dx."""
    gradient, of_log = call.gradients[0], None
    if len(call.gradients) > 1:
        of_log = call.gradients[1]
    x = call.x(0)
    probabilities = b.op("Softmax", x, axis=_CLASSES)
    found = None
    if gradient is not None:
        right = b.cast(_is_right(call, b), dtype_of(x))
        found = b.mul(b.sub(probabilities, right), _of_each(call, b, gradient))
    if of_log is not None:
        through_log = b.sub(of_log, b.mul(probabilities, b.reduce_sum(of_log, _CLASSES)))
        found = through_log if found is None else b.add(found, through_log)
    return (found,)


def _of_each(call: Call, b: Builder, gradient: ir.Value) -> ir.Value:
    """The gradient of each sample's loss before weights, with a dimension of 1 for the classes."""
    reduction = call.string("reduction", "mean")
    weights = _weights(call, b)
    if reduction == "mean":
        if weights is None:
            gradient = b.div(gradient, _count(call, b))
        else:
            gradient = b.divide_or_zero(gradient, b.op("ReduceSum", weights, keepdims=0))
    if weights is not None:
        gradient = b.mul(gradient, weights)
    return (
        b.unsqueeze(gradient, _CLASSES) if weights is not None or reduction == "none" else gradient
    )


def _weights(call: Call, b: Builder) -> ir.Value | None:
    """The weight of each sample, 0 where it is ignored; None where all are 1."""
    dtype = dtype_of(call.x(0))
    given, ignored = call.optional(2), _ignored(call, b)
    if given is None:
        return None if ignored is None else b.cast(b.op("Not", ignored), dtype)
    labels = call.x(1)
    if ignored is None:
        return b.op("Gather", given, labels)
    # The label that is ignored need not be one of the classes.
    safe = b.where(ignored, b.constant(np.array(0, dtype_of(labels).numpy())), labels)
    return b.masked(b.op("Not", ignored), b.op("Gather", given, safe))


def _ignored(call: Call, b: Builder) -> ir.Value | None:
    if call.node.attributes.get("ignore_index") is None:
        return None
    labels = call.x(1)
    index = np.array(call.int("ignore_index", 0), dtype_of(labels).numpy())
    return b.op("Equal", labels, b.constant(index))


def _is_right(call: Call, b: Builder) -> ir.Value:
    """Whether a class is the label, by class."""
    x, labels = call.x(0), call.x(1)
    return b.op("Equal", b.unsqueeze(labels, _CLASSES), _classes(x, dtype_of(labels), b))


def _classes(x: ir.Value, dtype: ir.DataType, b: Builder) -> ir.Value:
    """0, 1, 2, ... along the axis of the classes."""
    along = [-1 if axis == _CLASSES else 1 for axis in range(rank_of(x))]
    count = None if x.shape is None else x.shape[_CLASSES]
    if isinstance(count, int):
        return b.constant(np.arange(count, dtype=dtype.numpy()).reshape(along))
    size = b.op("Squeeze", b.dim(x, _CLASSES), b.ints(0))
    numbers = b.cast(b.op("Range", b.scalar(0), size, b.scalar(1)), dtype)
    return b.op("Reshape", numbers, b.ints(*along))


def _count(call: Call, b: Builder) -> ir.Value:
    return b.cast(b.op("Size", call.x(1)), dtype_of(call.x(0)))
