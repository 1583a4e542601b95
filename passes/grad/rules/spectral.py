"""The gradient of the discrete Fourier transform, which is linear: its adjoint."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import constant_ints
from onnxfold.passes.grad.builder import Builder, dtype_of, rank_of
from onnxfold.passes.grad.vjp import Call, Gradients, vjp

_AXIS_IS_INPUT = 20
_REAL = 1


@vjp("DFT")
def dft(call: Call, b: Builder) -> Gradients:
    """The adjoint of the transform is N times its inverse, that of the inverse the transform by N.

    A one-sided transform leaves out elements, whose gradients are zeros; a real signal has the real
    part of the gradient.
    """
    x, inverse = call.x(0), call.int("inverse", 0)
    onesided = call.int("onesided", 0)
    if inverse and onesided:
        raise call.refusal("it is one-sided and inverse")
    axis = _axis(call)
    given = call.constant_ints(1)
    length = b.dim(x, axis) if given is None else b.ints(*given)
    gradient = _resized(call.gradient, axis, length, b) if onesided else call.gradient
    adjoint = _transformed(call, gradient, axis, b)
    size = b.cast(length, dtype_of(x))
    adjoint = b.div(adjoint, size) if inverse else b.mul(adjoint, size)
    if given is not None:
        adjoint = _resized(adjoint, axis, b.dim(x, axis), b)
    if x.shape is not None and x.shape[-1] == _REAL:
        adjoint = b.op("Slice", adjoint, b.ints(0), b.ints(1), b.ints(-1))
    b.assume_like(adjoint, x)
    return (adjoint,)


def _axis(call: Call) -> int:
    rank = rank_of(call.x(0))
    if call.opset < _AXIS_IS_INPUT:
        return call.int("axis", 1) % rank
    value = call.optional(2)
    known = (-2,) if value is None else constant_ints(value)
    if known is None:
        raise call.refusal("its axis is not a constant")
    return known[0] % rank


def _transformed(call: Call, gradient: ir.Value, axis: int, b: Builder) -> ir.Value:
    back = 1 - call.int("inverse", 0)
    if call.opset < _AXIS_IS_INPUT:
        return b.op("DFT", gradient, axis=axis, inverse=back, like=gradient)
    place = b.constant(np.array(axis, np.int64))
    return b.op("DFT", gradient, None, place, inverse=back, like=gradient)


def _resized(value: ir.Value, axis: int, size: ir.Value, b: Builder) -> ir.Value:
    """``value`` cut off, or continued by zeros, to a size along an axis."""
    missing = b.op("Max", b.sub(size, b.dim(value, axis)), b.ints(0))
    rank = rank_of(value)
    zeros = [b.ints(0)] * rank
    pads = b.op("Concat", *zeros, *zeros[:axis], missing, *zeros[axis + 1 :], axis=0)
    cut = b.op("Slice", value, b.ints(0), size, b.ints(axis))
    return b.op("Pad", cut, pads)
