"""Gradients of sums, products and quotients with broadcasting."""

from __future__ import annotations

from onnxfold.passes.grad.builder import Builder
from onnxfold.passes.grad.vjp import Call, Gradients, vjp


@vjp("Add", "Sum")
def add(call: Call, b: Builder) -> Gradients:
    """d(x + y): the gradient, summed over what was broadcast."""
    return [
        b.sum_to(call.gradient, call.x(index)) if need else None
        for index, need in enumerate(call.needed)
    ]


@vjp("Sub")
def sub(call: Call, b: Builder) -> Gradients:
    """d(x - y)."""
    gradient = call.gradient
    left = b.sum_to(gradient, call.x(0)) if call.needed[0] else None
    right = b.sum_to(b.neg(gradient), call.x(1)) if call.needed[1] else None
    return left, right


@vjp("Mul")
def mul(call: Call, b: Builder) -> Gradients:
    """d(x y) = y dx + x dy."""
    x, y = call.x(0), call.x(1)
    if x is y:
        return (b.mul(b.scale(call.gradient, 2), x),)
    left = b.sum_to(b.mul(call.gradient, y), x) if call.needed[0] else None
    right = b.sum_to(b.mul(call.gradient, x), y) if call.needed[1] else None
    return left, right


@vjp("Div")
def div(call: Call, b: Builder) -> Gradients:
    """d(x / y) = dx / y - (x / y) dy / y."""
    x, y = call.x(0), call.x(1)
    quotient = b.div(call.gradient, y)
    left = b.sum_to(quotient, x) if call.needed[0] else None
    right = None
    if call.needed[1]:
        right = b.sum_to(b.neg(b.mul(quotient, call.y())), y)
    return left, right


@vjp("Neg")
def neg(call: Call, b: Builder) -> Gradients:
    """d(-x)."""
    return (b.neg(call.gradient),)


@vjp("Identity")
def identity(call: Call, _: Builder) -> Gradients:
    """d(x)."""
    return (call.gradient,)
