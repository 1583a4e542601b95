"""The gradient of GridSample: of the image and of the grid, through gathered neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import onnx_ir as ir

from onnxfold.passes.grad.builder import Builder, dtype_of, rank_of
from onnxfold.passes.grad.compositions import gradients_through
from onnxfold.passes.grad.rules.interpolation import (
    Taps,
    cubic_taps,
    inside,
    linear_taps,
    nearest_tap,
    reflected,
)
from onnxfold.passes.grad.vjp import Call, Gradients, vjp


@vjp("GridSample")
def grid_sample(call: Call, b: Builder) -> Gradients:
    """A sum of neighbours by weights that depend on the grid; where it rounds, it is constant."""
    x, grid = call.x(0), call.x(1)
    taps: list[Taps] = []
    for axis in range(2, rank_of(x)):
        # The grid names the last axis of the image first.
        place = b.op("Gather", grid, b.scalar(rank_of(x) - 1 - axis), axis=-1)
        size = b.cast(b.dim(x, axis), dtype_of(grid))
        taps.append(_axis_taps(call, b, b.op("Reshape", place, b.ints(0, 1, -1)), size))
    sampled = sum_of_neighbours(b, x, taps)
    return gradients_through(call, b, [b.reshape_like(sampled, call.y())])


def sum_of_neighbours(b: Builder, x: ir.Value, taps: Sequence[Taps]) -> ir.Value:
    """Every combination of the taps of the axes, by the products of their weights.

    Args:
        b: Writes the nodes.
        x: [N, C, spatial ...].
        taps: Those of each spatial axis, [N, taps, places], inside of it.

    Returns:
        [N, C, places].
    """
    count = math.prod(each.count for each in taps)
    apart = [
        [other for other in range(1, len(taps) + 1) if other != own + 1] for own in range(len(taps))
    ]
    index: ir.Value | None = None
    for axis, each in enumerate(taps):
        own = b.unsqueeze(b.cast(each.index, ir.DataType.INT64), *apart[axis])
        index = own if index is None else b.add(b.mul(index, b.dim(x, axis + 2)), own)
    flat = b.op("Reshape", index, b.ints(0, 1, -1))
    channels = b.op("Concat", b.ints(1), b.dim(x, 1), b.ints(1), axis=0)
    read = b.op(
        "GatherElements",
        b.op("Reshape", x, b.ints(0, 0, -1)),
        b.op("Expand", flat, channels),
        axis=2,
    )
    weights = [
        b.unsqueeze(each.weight, *apart[axis])
        for axis, each in enumerate(taps)
        if each.weight is not None
    ]
    if not weights:
        return read
    weight = b.cast(reduce(b.mul, weights), dtype_of(x))
    weight = b.op("Reshape", weight, b.ints(0, 1, count, -1))
    return b.reduce_sum(
        b.mul(b.op("Reshape", read, b.ints(0, 0, count, -1)), weight), 2, keepdims=False
    )


def _axis_taps(call: Call, b: Builder, place: ir.Value, size: ir.Value) -> Taps:
    """The elements of one axis that are read at each place, which lies in -1 ... 1."""
    mode, padding = call.string("mode", "linear"), call.string("padding_mode", "zeros")
    aligned = bool(call.int("align_corners", 0))
    one = b.number(1.0, size)
    last = b.sub(size, one)
    half = b.scale(b.add(place, b.number(1.0, place)), 0.5)
    # Corners are centres of the outermost elements, or their outer edges.
    position = b.mul(half, last) if aligned else b.sub(b.mul(half, size), b.number(0.5, place))
    if mode in ("cubic", "bicubic"):
        taps = cubic_taps(b, position, -0.75)
        if padding == "reflection":
            taps = Taps(reflected(b, taps.index, size, aligned), taps.weight, taps.count)
        return inside(b, taps, last, zeros=padding == "zeros")
    position = b.op("Round", position) if mode == "nearest" else position
    if padding == "reflection":
        position = reflected(b, position, size, aligned)
    if padding != "zeros":
        position = b.op("Min", b.op("Max", position, b.number(0.0, position)), last)
    taps = nearest_tap(position) if mode == "nearest" else linear_taps(b, position)
    return inside(b, taps, last, zeros=padding == "zeros")
