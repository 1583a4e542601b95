"""Gradients of reductions: sums, means, norms and extrema over axes."""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.passes.grad.builder import Builder, rank_of
from onnxfold.passes.grad.vjp import Call, Gradients, vjp


@vjp("ReduceSum")
def reduce_sum(call: Call, b: Builder) -> Gradients:
    """D sum(x): the gradient, repeated along what was summed."""
    return (b.expand_like(_with_axes(call, b, call.gradient), call.x(0)),)


def reduced_axes(call: Call) -> tuple[int, ...]:
    """The axes that are reduced, counted from the front, sorted."""
    rank = rank_of(call.x(0))
    axes = call.ints("axes")
    if axes is None:
        axes = call.constant_ints(1)
    if not axes:
        return () if call.int("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(axis % rank for axis in axes))


def _with_axes(call: Call, b: Builder, value: ir.Value) -> ir.Value:
    """``value``, of the shape of the output, with dimensions of 1 where it was reduced."""
    if call.int("keepdims", 1):
        return value
    return b.unsqueeze(value, *reduced_axes(call))
