"""Gradients of functions of single elements, of extrema of several tensors, and of selections.

Where a function has no derivative, the choice is torch's; where torch's gradient is infinite (a
square root or a logarithm at 0), it is 0 here, so that no step of training is lost to it.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxfold.passes.constants import constant_scalar
from onnxfold.passes.grad.builder import Builder, dtype_of
from onnxfold.passes.grad.vjp import Call, Gradients, vjp


@vjp("Abs")
def absolute(call: Call, b: Builder) -> Gradients:
    """d|x| = sign(x) dx."""
    return (b.mul(call.gradient, b.op("Sign", call.x(0))),)


@vjp("Exp")
def exp(call: Call, b: Builder) -> Gradients:
    """d(e^x) = e^x dx."""
    return (b.mul(call.gradient, call.y()),)


@vjp("Log")
def log(call: Call, b: Builder) -> Gradients:
    """d(log x) = dx / x."""
    return (b.divide_or_zero(call.gradient, call.x(0)),)


@vjp("Sqrt")
def sqrt(call: Call, b: Builder) -> Gradients:
    """d(sqrt x) = dx / (2 sqrt x)."""
    return (b.scale(b.divide_or_zero(call.gradient, call.y()), 0.5),)


@vjp("Reciprocal")
def reciprocal(call: Call, b: Builder) -> Gradients:
    """d(1 / x) = -dx / x^2."""
    y = call.y()
    return (b.neg(b.mul(call.gradient, b.mul(y, y))),)


@vjp("Erf")
def erf(call: Call, b: Builder) -> Gradients:
    """D erf x = 2 / sqrt(pi) e^(-x^2) dx."""
    x = call.x(0)
    slope = b.scale(b.op("Exp", b.neg(b.mul(x, x))), 2 / math.sqrt(math.pi))
    return (b.mul(call.gradient, slope),)


@vjp("Pow")
def power(call: Call, b: Builder) -> Gradients:
    """d(x^p) = p x^(p-1) dx + x^p log(x) dp; the latter is 0 where x is not positive."""
    x, p, g = call.x(0), call.x(1), call.gradient
    d_x = d_p = None
    if call.needed[0]:
        exponent = constant_scalar(p)
        slope = _power_slope(call, b) if exponent is None else _known_slope(call, b, exponent)
        d_x = b.sum_to(b.mul(g, slope), x)
    if call.needed[1]:
        positive = b.op("Greater", x, b.number(0, x))
        logarithm = b.op("Log", b.where(positive, x, b.number(1, x)))
        flow = b.cast(b.mul(g, b.mul(call.y(), logarithm)), dtype_of(p))
        d_p = b.sum_to(flow, p)
    return d_x, d_p


def _known_slope(call: Call, b: Builder, exponent: float) -> ir.Value:
    x = call.x(0)
    if exponent == 0:
        return b.zeros_like(x)
    if exponent == 1:
        return b.full_like(x, 1)
    if exponent == 2:
        return b.scale(x, 2)
    if exponent == 3:
        return b.scale(b.mul(x, x), 3)
    if exponent == 0.5:
        return b.divide_or_zero(b.full_like(x, 0.5), call.y())
    return b.scale(b.power(x, exponent - 1), exponent)


def _power_slope(call: Call, b: Builder) -> ir.Value:
    x, p = call.x(0), b.cast(call.x(1), dtype_of(call.x(0)))
    slope = b.mul(p, b.op("Pow", x, b.sub(p, b.number(1, p))))
    # At x = 0 the power is infinite, and 0 times that is not a number.
    return b.where(b.is_zero(p), b.number(0, p), slope)


@vjp("Max", "Min")
def extremum(call: Call, b: Builder) -> Gradients:
    """D max(x, ...): to the largest; in equal parts where several are."""
    if len(call.node.inputs) == 1:
        return (call.gradient,)
    y = call.y()
    chosen = [
        b.cast(b.op("Equal", call.x(index), y), dtype_of(y))
        for index in range(len(call.node.inputs))
    ]
    share = b.div(call.gradient, b.op("Sum", *chosen))
    return [
        b.sum_to(b.mul(share, each), call.x(index)) if call.needed[index] else None
        for index, each in enumerate(chosen)
    ]


@vjp("Mean")
def mean(call: Call, b: Builder) -> Gradients:
    """D mean of x, ...: the gradient in equal parts."""
    share = b.scale(call.gradient, 1 / len(call.needed))
    return [
        b.sum_to(share, call.x(index)) if need else None for index, need in enumerate(call.needed)
    ]


@vjp("Clip")
def clip(call: Call, b: Builder) -> Gradients:
    """D clip x: to x inside the bounds and on them, else to the bound that was put in its place.

    The upper bound wins where the bounds have changed places.
    """
    x, g = call.x(0), call.gradient
    low, high = call.optional(1), call.optional(2)
    d_x = d_low = d_high = None
    if call.needed[0] and _is_ordered(low, high):
        d_x = b.masked(b.op("Equal", x, call.y()), g)
    elif call.needed[0]:
        d_x = g
        if low is not None:
            d_x = b.masked(b.op("GreaterOrEqual", x, low), d_x)
        if high is not None:
            d_x = b.masked(b.op("LessOrEqual", x, high), d_x)
    if low is not None and call.needed[1]:
        d_low = b.masked(b.op("Less", x, low), g)
        if high is not None:
            d_low = b.masked(b.op("LessOrEqual", low, high), d_low)
        d_low = b.sum_to(d_low, low)
    if high is not None and call.needed[2]:
        raised = x if low is None else b.op("Max", x, low)
        d_high = b.sum_to(b.masked(b.op("Greater", raised, high), g), high)
    return d_x, d_low, d_high


def _is_ordered(low: ir.Value | None, high: ir.Value | None) -> bool:
    """Whether the bounds are known not to have changed places: what is between them stays."""
    if low is None or high is None:
        return True
    numbers = constant_scalar(low), constant_scalar(high)
    return numbers[0] is not None and numbers[1] is not None and numbers[0] <= numbers[1]


@vjp("Where")
def where(call: Call, b: Builder) -> Gradients:
    """To the one of x and y that was chosen."""
    condition, g = call.x(0), call.gradient
    d_x = d_y = None
    if call.needed[1]:
        d_x = b.sum_to(b.masked(condition, g), call.x(1))
    if call.needed[2]:
        d_y = b.sum_to(b.masked(b.op("Not", condition), g), call.x(2))
    return None, d_x, d_y


@vjp("Cast", "CastLike")
def cast(call: Call, b: Builder) -> Gradients:
    """D cast x: the gradient, cast back."""
    return (b.cast(call.gradient, dtype_of(call.x(0))),)


@vjp("Mod")
def mod(call: Call, b: Builder) -> Gradients:
    """d(x - n y) = dx - n dy, with n the whole number of times that y goes into x."""
    x, y, g = call.x(0), call.x(1), call.gradient
    d_x = b.sum_to(g, x) if call.needed[0] else None
    d_y = None
    if call.needed[1]:
        times = b.op("Round", b.div(b.sub(x, call.y()), y))
        d_y = b.sum_to(b.neg(b.mul(g, times)), y)
    return d_x, d_y
