"""Gradients of sums and products that run along an axis."""

from __future__ import annotations

from onnxfold.passes.grad.bodies import BodyBuilder
from onnxfold.passes.grad.builder import Builder, rank_of
from onnxfold.passes.grad.scans import Values, scan
from onnxfold.passes.grad.vjp import Call, Gradients, vjp


@vjp("CumSum")
def cum_sum(call: Call, b: Builder) -> Gradients:
    """Each element is in all later sums: the gradient, summed from the other end."""
    exclusive, reverse = call.int("exclusive", 0), 1 - call.int("reverse", 0)
    axis, gradient = call.x(1), call.gradient
    summed = b.op("CumSum", gradient, axis, exclusive=exclusive, reverse=reverse, like=gradient)
    return (summed,)


@vjp("CumProd")
def cum_prod(call: Call, b: Builder) -> Gradients:
    """What stands before an element, times what of the gradient reaches it from behind.

    From behind comes s, with s' = x (g + s) one element earlier (g + x s where products exclude
    their own element). No division: elements may be 0.
    """
    x, exclusive, reverse = call.x(0), call.int("exclusive", 0), call.int("reverse", 0)
    (axis,) = call.constant_ints(1) or (0,)
    order = _axis_first(axis % rank_of(x), rank_of(x))

    def step(body: BodyBuilder, states: Values, elements: Values) -> tuple[Values, Values]:
        (behind,), (factor, gradient) = states, elements
        if exclusive:
            return [body.add(gradient, body.mul(factor, behind))], [behind]
        reaching = body.add(gradient, behind)
        return [body.mul(factor, reaching)], [reaching]

    scanned = [b.op("Transpose", each, perm=order) for each in (x, call.gradient)]
    first = b.op("Squeeze", b.op("Slice", scanned[0], *map(b.ints, (0, 1, 0))), b.ints(0))
    found = scan(b, [b.zeros_like(first)], scanned, step, reverse=not reverse)[1]
    before = b.op("CumProd", x, call.x(1), exclusive=1, reverse=reverse, like=x)
    return (b.mul(before, b.op("Transpose", found, perm=_inverse(order), like=x)),)


def _axis_first(axis: int, rank: int) -> list[int]:
    return [axis, *(each for each in range(rank) if each != axis)]


def _inverse(order: list[int]) -> list[int]:
    return [order.index(axis) for axis in range(len(order))]
