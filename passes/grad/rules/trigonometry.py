"""Gradients of trigonometric and hyperbolic functions and their inverses."""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.passes.grad.builder import Builder
from onnxfold.passes.grad.vjp import Call, Gradients, vjp


@vjp("Sin")
def sin(call: Call, b: Builder) -> Gradients:
    """D sin x = cos(x) dx."""
    return (b.mul(call.gradient, b.op("Cos", call.x(0))),)


@vjp("Cos")
def cos(call: Call, b: Builder) -> Gradients:
    """D cos x = -sin(x) dx."""
    return (b.neg(b.mul(call.gradient, b.op("Sin", call.x(0)))),)


@vjp("Tan")
def tan(call: Call, b: Builder) -> Gradients:
    """D tan x = (1 + y^2) dx."""
    return (b.mul(call.gradient, _square_and(call.y(), 1, b)),)


@vjp("Asin")
def asin(call: Call, b: Builder) -> Gradients:
    """D asin x = dx / sqrt(1 - x^2)."""
    return (b.div(call.gradient, b.op("Sqrt", _one_less_square(call.x(0), b))),)


@vjp("Acos")
def acos(call: Call, b: Builder) -> Gradients:
    """D acos x = -dx / sqrt(1 - x^2)."""
    return (b.neg(b.div(call.gradient, b.op("Sqrt", _one_less_square(call.x(0), b)))),)


@vjp("Atan")
def atan(call: Call, b: Builder) -> Gradients:
    """D atan x = dx / (1 + x^2)."""
    return (b.div(call.gradient, _square_and(call.x(0), 1, b)),)


@vjp("Sinh")
def sinh(call: Call, b: Builder) -> Gradients:
    """D sinh x = cosh(x) dx."""
    return (b.mul(call.gradient, b.op("Cosh", call.x(0))),)


@vjp("Cosh")
def cosh(call: Call, b: Builder) -> Gradients:
    """D cosh x = sinh(x) dx."""
    return (b.mul(call.gradient, b.op("Sinh", call.x(0))),)


@vjp("Asinh")
def asinh(call: Call, b: Builder) -> Gradients:
    """D asinh x = dx / sqrt(x^2 + 1)."""
    return (b.div(call.gradient, b.op("Sqrt", _square_and(call.x(0), 1, b))),)


@vjp("Acosh")
def acosh(call: Call, b: Builder) -> Gradients:
    """D acosh x = dx / sqrt(x^2 - 1)."""
    return (b.div(call.gradient, b.op("Sqrt", _square_and(call.x(0), -1, b))),)


@vjp("Atanh")
def atanh(call: Call, b: Builder) -> Gradients:
    """D atanh x = dx / (1 - x^2)."""
    return (b.div(call.gradient, _one_less_square(call.x(0), b)),)


def _square_and(value: ir.Value, number: float, b: Builder) -> ir.Value:
    return b.add(b.mul(value, value), b.number(number, value))


def _one_less_square(value: ir.Value, b: Builder) -> ir.Value:
    """1 - x^2 as (1 - x) (1 + x), which is exact near 1."""
    one = b.number(1, value)
    return b.mul(b.sub(one, value), b.add(one, value))
