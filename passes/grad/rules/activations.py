"""Gradients of activation functions. At a kink the choice is torch's."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxfold.passes.grad.builder import Builder, rank_of
from onnxfold.passes.grad.vjp import Call, Gradients, vjp

_SELU_ALPHA = 1.67326319217681884765625
_SELU_GAMMA = 1.05070102214813232421875


@vjp("Relu")
def relu(call: Call, b: Builder) -> Gradients:
    """D max(x, 0): where the result is positive."""
    return (b.masked(_positive(call.y(), b), call.gradient),)


@vjp("LeakyRelu")
def leaky_relu(call: Call, b: Builder) -> Gradients:
    """D leaky_relu x = dx where x > 0, else alpha dx."""
    return (_bent(call, b, b.number(call.float("alpha", 0.01), call.x(0))),)


@vjp("PRelu")
def prelu(call: Call, b: Builder) -> Gradients:
    """D prelu x = dx where x > 0, else slope dx + x dslope."""
    x, slope = call.x(0), call.x(1)
    d_x = _bent(call, b, slope) if call.needed[0] else None
    d_slope = None
    if call.needed[1]:
        negative = b.op("Min", x, b.number(0, x))
        d_slope = b.sum_to(b.mul(call.gradient, negative), slope)
    return d_x, d_slope


@vjp("Elu")
def elu(call: Call, b: Builder) -> Gradients:
    """D elu x = dx where x > 0, else alpha e^x dx = (y + alpha) dx."""
    alpha = b.number(call.float("alpha", 1.0), call.x(0))
    return (_bent(call, b, b.add(call.y(), alpha)),)


@vjp("Celu")
def celu(call: Call, b: Builder) -> Gradients:
    """D celu x = dx where x > 0, else e^(x / alpha) dx = (y / alpha + 1) dx."""
    scaled = b.scale(call.y(), 1 / call.float("alpha", 1.0))
    return (_bent(call, b, b.add(scaled, b.number(1, scaled))),)


@vjp("Selu")
def selu(call: Call, b: Builder) -> Gradients:
    """D selu x = gamma dx where x > 0, else gamma alpha e^x dx = (y + gamma alpha) dx."""
    x, y = call.x(0), call.y()
    gamma = call.float("gamma", _SELU_GAMMA)
    below = b.add(y, b.number(gamma * call.float("alpha", _SELU_ALPHA), y))
    slope = b.where(_positive(x, b), b.number(gamma, x), below)
    return (b.mul(call.gradient, slope),)


@vjp("ThresholdedRelu")
def thresholded_relu(call: Call, b: Builder) -> Gradients:
    """D x: where x > alpha."""
    x = call.x(0)
    above = b.op("Greater", x, b.number(call.float("alpha", 1.0), x))
    return (b.masked(above, call.gradient),)


@vjp("Shrink")
def shrink(call: Call, b: Builder) -> Gradients:
    """D shrink x: where |x| > lambd."""
    x = call.x(0)
    outside = b.op("Greater", b.op("Abs", x), b.number(call.float("lambd", 0.5), x))
    return (b.masked(outside, call.gradient),)


@vjp("HardSigmoid")
def hard_sigmoid(call: Call, b: Builder) -> Gradients:
    """D clip(alpha x + beta, 0, 1): alpha dx strictly inside."""
    inside = _between_0_and_1(call.y(), b)
    return (b.scale(b.masked(inside, call.gradient), call.float("alpha", 0.2)),)


@vjp("HardSwish")
def hard_swish(call: Call, b: Builder) -> Gradients:
    """d(x h(x)) = (h + x / 6 where 0 < h < 1) dx, with h = clip(x / 6 + 1/2, 0, 1)."""
    x = call.x(0)
    h = b.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)
    slope = b.add(h, b.masked(_between_0_and_1(h, b), b.scale(x, 1 / 6)))
    return (b.mul(call.gradient, slope),)


@vjp("Softplus")
def softplus(call: Call, b: Builder) -> Gradients:
    """D log(1 + e^x) = sigmoid(x) dx."""
    return (b.mul(call.gradient, b.op("Sigmoid", call.x(0))),)


@vjp("Softsign")
def softsign(call: Call, b: Builder) -> Gradients:
    """d(x / (1 + |x|)) = dx / (1 + |x|)^2."""
    x = call.x(0)
    below = b.add(b.op("Abs", x), b.number(1, x))
    return (b.div(call.gradient, b.mul(below, below)),)


@vjp("Sigmoid")
def sigmoid(call: Call, b: Builder) -> Gradients:
    """D sigmoid x = y (1 - y) dx."""
    y = call.y()
    return (b.mul(call.gradient, _sigmoid_slope(y, b)),)


@vjp("Tanh")
def tanh(call: Call, b: Builder) -> Gradients:
    """D tanh x = (1 - y^2) dx."""
    return (b.mul(call.gradient, _tanh_slope(call.y(), b)),)


@vjp("Swish")
def swish(call: Call, b: Builder) -> Gradients:
    """d(x s) = (s + alpha x s (1 - s)) dx, with s = sigmoid(alpha x)."""
    x, alpha = call.x(0), call.float("alpha", 1.0)
    s = b.op("Sigmoid", b.scale(x, alpha))
    slope = b.add(s, b.mul(b.scale(x, alpha), _sigmoid_slope(s, b)))
    return (b.mul(call.gradient, slope),)


@vjp("Mish")
def mish(call: Call, b: Builder) -> Gradients:
    """d(x t) = (t + x (1 - t^2) sigmoid(x)) dx, with t = tanh(softplus(x))."""
    x = call.x(0)
    t = b.op("Tanh", b.op("Softplus", x))
    steep = b.mul(_tanh_slope(t, b), b.op("Sigmoid", x))
    return (b.mul(call.gradient, b.add(t, b.mul(x, steep))),)


@vjp("Gelu")
def gelu(call: Call, b: Builder) -> Gradients:
    """d(x Phi(x)) = (Phi(x) + x phi(x)) dx, with the normal distribution or its approximation."""
    if call.string("approximate", "none") == "tanh":
        return (b.mul(call.gradient, _approximate_gelu_slope(call.x(0), b)),)
    x = call.x(0)
    half = b.number(0.5, x)
    share = b.add(b.scale(b.op("Erf", b.scale(x, math.sqrt(0.5))), 0.5), half)
    density = b.op("Exp", b.scale(b.mul(x, x), -0.5))
    slope = b.add(share, b.scale(b.mul(x, density), 1 / math.sqrt(2 * math.pi)))
    return (b.mul(call.gradient, slope),)


@vjp("Softmax")
def softmax(call: Call, b: Builder) -> Gradients:
    """D softmax x = y (dx - sum y dx) along the axis."""
    y = call.y()
    weighted = b.mul(call.gradient, y)
    return (b.sub(weighted, b.mul(y, b.reduce_sum(weighted, _axis(call)))),)


@vjp("LogSoftmax")
def log_softmax(call: Call, b: Builder) -> Gradients:
    """D log_softmax x = dx - e^y sum dx along the axis."""
    g = call.gradient
    return (b.sub(g, b.mul(b.op("Exp", call.y()), b.reduce_sum(g, _axis(call)))),)


def _axis(call: Call) -> int:
    return call.int("axis", -1) % rank_of(call.x(0))


def _positive(value: ir.Value, b: Builder) -> ir.Value:
    return b.op("Greater", value, b.number(0, value))


def _bent(call: Call, b: Builder, slope: ir.Value) -> ir.Value:
    """The gradient where x > 0, times ``slope`` elsewhere."""
    x = call.x(0)
    return b.mul(call.gradient, b.where(_positive(x, b), b.number(1, x), slope))


def _between_0_and_1(value: ir.Value, b: Builder) -> ir.Value:
    return b.op("And", _positive(value, b), b.op("Less", value, b.number(1, value)))


def _sigmoid_slope(y: ir.Value, b: Builder) -> ir.Value:
    return b.mul(y, b.sub(b.number(1, y), y))


def _tanh_slope(y: ir.Value, b: Builder) -> ir.Value:
    return b.sub(b.number(1, y), b.mul(y, y))


def _approximate_gelu_slope(x: ir.Value, b: Builder) -> ir.Value:
    """Of x / 2 (1 + tanh u), with u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    square = b.mul(x, x)
    one = b.number(1, x)
    t = b.op("Tanh", b.scale(b.mul(x, b.add(b.scale(square, cubic), one)), scale))
    inner = b.scale(b.add(b.scale(square, 3 * cubic), one), scale)
    steep = b.mul(b.mul(x, _tanh_slope(t, b)), inner)
    return b.scale(b.add(b.add(t, one), steep), 0.5)
