"""Gradients of what moves, repeats, joins and cuts tensors without computing anything."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.constants import constant_ints
from onnxfold.passes.grad.builder import Builder, rank_of, static_dims
from onnxfold.passes.grad.vjp import Call, Gradients, vjp

_END = 2**31 - 1


@vjp("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(call: Call, b: Builder) -> Gradients:
    """Back to the shape that it had."""
    return (b.reshape_like(call.gradient, call.x(0)),)


@vjp("Transpose")
def transpose(call: Call, b: Builder) -> Gradients:
    """Transposed back."""
    order = call.ints("perm") or tuple(range(rank_of(call.x(0))))[::-1]
    return (b.transpose(call.gradient, [order.index(axis) for axis in range(len(order))]),)


@vjp("Expand")
def expand(call: Call, b: Builder) -> Gradients:
    """Summed over what was repeated."""
    return (b.sum_to(call.gradient, call.x(0)),)


@vjp("Tile")
def tile(call: Call, b: Builder) -> Gradients:
    """Summed over the copies: each dimension is split into copies and what was copied."""
    x = call.x(0)
    rank, dims, repeats = rank_of(x), static_dims(x), constant_ints(call.x(1))
    if dims is not None and repeats is not None:
        pairs = zip(repeats, dims, strict=True)
        split = b.ints(*(size for pair in pairs for size in pair))
    else:
        columns = [b.unsqueeze(each, 1) for each in (call.x(1), b.shape(x))]
        split = b.op("Reshape", b.op("Concat", *columns, axis=1), b.ints(-1))
    copies = b.op("Reshape", call.gradient, split)
    return (b.reduce_sum(copies, *range(0, 2 * rank, 2), keepdims=False),)


@vjp("Concat")
def concat(call: Call, b: Builder) -> Gradients:
    """Each takes its part of the gradient."""
    inputs = [call.x(index) for index in range(len(call.node.inputs))]
    axis = call.int("axis", 0) % rank_of(inputs[0])
    sizes = [b.dim(value, axis) for value in inputs]
    known = [constant_ints(size) for size in sizes]
    if all(size is not None for size in known):
        split = b.ints(*(size[0] for size in known if size is not None))
    else:
        split = b.op("Concat", *sizes, axis=0)
    return b.nodes("Split", [call.gradient, split], len(inputs), axis=axis)


@vjp("Split")
def split(call: Call, b: Builder) -> Gradients:
    """Joined again; zeros where no gradient flows into a part."""
    parts = [
        b.zeros_like(output) if gradient is None else gradient
        for output, gradient in zip(call.node.outputs, call.gradients, strict=True)
    ]
    return (b.op("Concat", *parts, axis=call.int("axis", 0)),)


@vjp("ReverseSequence")
def reverse_sequence(call: Call, b: Builder) -> Gradients:
    """Reversed back."""
    batch, time = call.int("batch_axis", 1), call.int("time_axis", 0)
    g, lengths = call.gradient, call.x(1)
    return (b.op("ReverseSequence", g, lengths, batch_axis=batch, time_axis=time),)


@vjp("Slice")
def slice_(call: Call, b: Builder) -> Gradients:
    """Put back where it was cut from, into zeros."""
    x, axes, steps = call.x(0), _axes(call), _steps(call)
    if steps is not None and all(step == 1 for step in steps):
        before, after = _margins(call, b, axes)
        pads = _joined(b, before, after)
        return (b.op("Pad", call.gradient, pads, None, b.ints(*axes), like=x),)
    found = call.gradient
    for place, axis in enumerate(axes):
        found = _put_back(call, b, found, place, axis)
    return (found,)


def _axes(call: Call) -> tuple[int, ...]:
    """The axes that are cut, counted from the front."""
    rank = rank_of(call.x(0))
    axes = call.constant_ints(3)
    if axes is None:
        starts = call.x(1)
        axes = tuple(range(rank if starts.shape is None else _length(starts, rank)))
    return tuple(axis % rank for axis in axes)


def _length(vector: ir.Value, default: int) -> int:
    dims = static_dims(vector)
    return dims[0] if dims else default


def _steps(call: Call) -> tuple[int, ...] | None:
    """The steps; empty where they are 1, None where they turn out at run time."""
    value = call.optional(4)
    return () if value is None else constant_ints(value)


def _margins(call: Call, b: Builder, axes: tuple[int, ...]) -> tuple[ir.Value, ir.Value]:
    """How many elements lie before and behind what was cut out in steps of 1."""
    x, y, starts = call.x(0), call.y(), constant_ints(call.x(1))
    sizes, parts = _sizes(x, axes), _sizes(y, axes)
    if starts is not None and sizes is not None and parts is not None:
        pairs = zip(starts, sizes, strict=True)
        first = [min(max(start + size if start < 0 else start, 0), size) for start, size in pairs]
        left = zip(sizes, first, parts, strict=True)
        return b.ints(*first), b.ints(*(size - start - part for size, start, part in left))
    picked = b.ints(*axes)
    size = b.op("Gather", b.shape(x), picked)
    zero = b.ints(0)
    start = b.cast(call.x(1), ir.DataType.INT64)
    start = b.where(b.op("Less", start, zero), b.add(start, size), start)
    before = b.op("Min", b.op("Max", start, zero), size)
    return before, b.sub(b.sub(size, before), b.op("Gather", b.shape(y), picked))


def _sizes(value: ir.Value, axes: tuple[int, ...]) -> list[int] | None:
    """The dimensions of ``value`` at ``axes``, where all are known."""
    if value.shape is None:
        return None
    known = [size for axis in axes if isinstance(size := value.shape[axis], int)]
    return known if len(known) == len(axes) else None


def _joined(b: Builder, before: ir.Value, after: ir.Value) -> ir.Value:
    known = [constant_ints(each) for each in (before, after)]
    if known[0] is not None and known[1] is not None:
        return b.ints(*known[0], *known[1])
    return b.op("Concat", before, after, axis=0)


def _put_back(call: Call, b: Builder, part: ir.Value, place: int, axis: int) -> ir.Value:
    """``part`` scattered along one axis, to the places that the slice took it from."""
    x = call.x(0)
    rank = rank_of(x)
    size = b.dim(x, axis)
    positions = b.op("Range", b.scalar(0), b.op("Squeeze", size, b.ints(0)), b.scalar(1))
    limits = [call.optional(index) for index in (1, 2, 4)]
    bounds = [None if each is None else _element(b, each, place) for each in limits]
    taken = b.op("Slice", positions, bounds[0], bounds[1], b.ints(0), bounds[2])
    column = b.op("Reshape", taken, b.ints(*(-1 if other == axis else 1 for other in range(rank))))
    shape = b.op("Shape", part)
    indices = b.op("Expand", column, shape)
    pieces = [b.op("Slice", shape, b.ints(0), b.ints(axis)), size]
    pieces.append(b.op("Slice", shape, b.ints(axis + 1), b.ints(_END)))
    empty = ir.tensor(np.zeros(1, call.gradient.dtype.numpy() if call.gradient.dtype else None))
    zeros = b.op("ConstantOfShape", b.op("Concat", *pieces, axis=0), value=empty)
    return b.op("ScatterElements", zeros, indices, part, axis=axis)


def _element(b: Builder, vector: ir.Value, place: int) -> ir.Value:
    """One element of a vector, as a vector of int64."""
    known = constant_ints(vector)
    if known is not None:
        return b.ints(known[place])
    return b.op("Gather", b.cast(vector, ir.DataType.INT64), b.ints(place))
