"""Gradient of Dropout, whose inputs say whether it drops anything."""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.passes.constants import constant_scalar
from onnxfold.passes.grad.builder import Builder, dtype_of
from onnxfold.passes.grad.vjp import Call, Gradients, vjp


@vjp("Dropout")
def dropout(call: Call, b: Builder) -> Gradients:
    """D dropout x = mask / (1 - ratio) dx in training mode, else dx."""
    training = call.optional(2)
    known = False if training is None else constant_scalar(training)
    if known is not None and not known:
        return (call.gradient,)
    g = call.gradient
    dropped = b.mul(b.masked(_mask(call, b), g), _scale(call, b))
    return (dropped if training is None or known else b.where(training, dropped, g),)


def _mask(call: Call, b: Builder) -> ir.Value:
    """What was kept; told from the result where the node has no output for it."""
    if len(call.node.outputs) > 1 and call.y(1).name:
        return call.y(1)
    return b.op("Not", b.is_zero(call.y()))


def _scale(call: Call, b: Builder) -> ir.Value:
    x, ratio = call.x(0), call.optional(1)
    if ratio is None:
        return b.number(2, x)
    kept = b.sub(b.number(1, x), b.cast(ratio, dtype_of(x)))
    return b.op("Reciprocal", kept)
