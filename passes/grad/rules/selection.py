"""Gradients of operators that keep some elements: the largest ones, or a triangle."""

from __future__ import annotations

from onnxfold.passes.grad.builder import Builder
from onnxfold.passes.grad.vjp import Call, Gradients, vjp


@vjp("TopK")
def top_k(call: Call, b: Builder) -> Gradients:
    """Back to where the elements came from."""
    x, axis = call.x(0), call.int("axis", -1)
    places = b.output_of(call.node, 1)
    zeros = b.zeros_like(x)
    return (b.op("ScatterElements", zeros, places, call.gradient, axis=axis, like=x),)


@vjp("Trilu")
def trilu(call: Call, b: Builder) -> Gradients:
    """The same triangle of the gradient."""
    upper = call.int("upper", 1)
    return (b.op("Trilu", call.gradient, call.optional(1), upper=upper, like=call.x(0)),)
