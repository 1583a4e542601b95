"""Gradients of sums and products that run along an axis."""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.passes.grad.builder import Builder
from onnxfold.passes.grad.vjp import Call, Gradients, vjp


@vjp("CumSum")
def cum_sum(call: Call, b: Builder) -> Gradients:
    """Each element is in all later sums: the gradient, summed from the other end."""
    return (_summed(call, b, call.gradient),)


@vjp("CumProd")
def cum_prod(call: Call, b: Builder) -> Gradients:
    """Each element is in all later products: their gradients, by what multiplies it in each.

    That is the product divided by the element, which must not be 0.
    """
    x = call.x(0)
    return (b.div(_summed(call, b, b.mul(call.gradient, call.y())), x),)


def _summed(call: Call, b: Builder, value: ir.Value) -> ir.Value:
    exclusive, reverse = call.int("exclusive", 0), 1 - call.int("reverse", 0)
    return b.op("CumSum", value, call.x(1), exclusive=exclusive, reverse=reverse, like=value)
