"""Gradients of reductions: sums, means, products, norms and extrema over axes.

The axes may be an attribute, a constant, or computed at run time.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxfold.passes.constants import constant_ints
from onnxfold.passes.grad.builder import Builder, dtype_of, rank_of, static_dims
from onnxfold.passes.grad.vjp import Call, Gradients, vjp


@vjp("ReduceSum")
def reduce_sum(call: Call, b: Builder) -> Gradients:
    """D sum(x): the gradient, repeated along what was summed."""
    return (b.expand_like(_kept(call, b, call.gradient), call.x(0)),)


@vjp("ReduceMean")
def reduce_mean(call: Call, b: Builder) -> Gradients:
    """D mean(x): the gradient in equal parts."""
    x, g = call.x(0), _kept(call, b, call.gradient)
    count = _static_count(call)
    if count is not None:
        return (b.expand_like(b.scale(g, 1 / count), x),)
    dtype, results = dtype_of(x), static_dims(call.y())
    elements = b.cast(b.op("Size", x), dtype)
    if results is not None:
        elements = b.div(elements, b.number(max(math.prod(results), 1), x))
    else:
        elements = b.div(elements, b.cast(b.op("Size", call.y()), dtype))
    return (b.expand_like(b.div(g, elements), x),)


@vjp("ReduceSumSquare")
def reduce_sum_square(call: Call, b: Builder) -> Gradients:
    """D sum(x^2) = sum(2 x dx)."""
    x = call.x(0)
    return (b.mul(b.scale(_kept(call, b, call.gradient), 2), x),)


@vjp("ReduceL1")
def reduce_l1(call: Call, b: Builder) -> Gradients:
    """D sum(|x|) = sum(sign(x) dx)."""
    return (b.mul(_kept(call, b, call.gradient), b.op("Sign", call.x(0))),)


@vjp("ReduceL2")
def reduce_l2(call: Call, b: Builder) -> Gradients:
    """D norm(x) = sum(x / norm(x) dx); 0 where the norm is 0."""
    share = b.divide_or_zero(_kept(call, b, call.gradient), _kept(call, b, call.y()))
    return (b.mul(share, call.x(0)),)


@vjp("ReduceLogSum")
def reduce_log_sum(call: Call, b: Builder) -> Gradients:
    """D log(sum(x)) = sum(dx) / sum(x)."""
    total = b.op("Exp", _kept(call, b, call.y()))
    share = b.divide_or_zero(_kept(call, b, call.gradient), total)
    return (b.expand_like(share, call.x(0)),)


@vjp("ReduceLogSumExp")
def reduce_log_sum_exp(call: Call, b: Builder) -> Gradients:
    """D log(sum(e^x)) = sum(e^(x - y) dx); 0 where all of x is -inf."""
    x, y = call.x(0), _kept(call, b, call.y())
    lowest = b.op("Equal", y, b.number(-math.inf, y))
    finite = b.where(lowest, b.number(0, y), y)
    return (b.mul(_kept(call, b, call.gradient), b.op("Exp", b.sub(x, finite))),)


@vjp("ReduceMax", "ReduceMin")
def reduce_extremum(call: Call, b: Builder) -> Gradients:
    """D max(x): to the largest element; in equal parts where several are."""
    x, y = call.x(0), _kept(call, b, call.y())
    chosen = b.cast(b.op("Equal", x, y), dtype_of(x))
    share = b.div(_kept(call, b, call.gradient), _again(call, b, "ReduceSum", chosen))
    return (b.mul(share, chosen),)


@vjp("ReduceProd")
def reduce_prod(call: Call, b: Builder) -> Gradients:
    """D prod(x): the product of the other elements; right where some are 0, too.

    Second derivatives are right where none is.
    """
    x = call.x(0)
    zero = b.is_zero(x)
    safe = b.where(zero, b.number(1, x), x)
    is_zero = b.cast(zero, dtype_of(x))
    product = _again(call, b, "ReduceProd", safe)
    other_zeros = b.sub(_again(call, b, "ReduceSum", is_zero), is_zero)
    share = b.mul(_kept(call, b, call.gradient), b.div(product, safe))
    return (b.masked(b.is_zero(other_zeros), share),)


def _known_axes(call: Call) -> tuple[int, ...] | None:
    """The axes that are reduced, from the front, sorted; None where that turns out at run time."""
    rank = rank_of(call.x(0))
    axes = call.ints("axes")
    given = call.optional(1)
    if axes is None and given is not None:
        axes = constant_ints(given)
        if axes is None:
            return None
    if not axes:
        return () if call.int("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(axis % rank for axis in axes))


def _kept(call: Call, b: Builder, value: ir.Value) -> ir.Value:
    """``value``, of the shape of the output, with dimensions of 1 where it was reduced."""
    if call.int("keepdims", 1):
        return value
    axes = _known_axes(call)
    if axes is not None:
        return b.unsqueeze(value, *axes)
    whole = b.op("Shape", _again(call, b, "ReduceSum", call.x(0)))
    return b.op("Reshape", value, whole)


def _again(call: Call, b: Builder, op_type: str, value: ir.Value) -> ir.Value:
    """``value`` reduced along the same axes, which are kept."""
    axes = _known_axes(call)
    if axes == ():
        return value
    given = call.optional(1) if axes is None else b.ints(*axes)
    noop = call.int("noop_with_empty_axes", 0)
    return b.op(op_type, value, given, keepdims=1, noop_with_empty_axes=noop)


def _static_count(call: Call) -> int | None:
    """How many elements become one; None where that turns out at run time."""
    axes, shape = _known_axes(call), call.x(0).shape
    if axes is None or shape is None:
        return None
    dims = [shape[axis] for axis in axes]
    known = [dim for dim in dims if isinstance(dim, int)]
    return math.prod(known) if len(known) == len(dims) else None
