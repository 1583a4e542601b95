"""Gradients of what reads and writes elements at given places."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import onnx_ir as ir

from onnxfold.passes.constants import constant_ints
from onnxfold.passes.grad.builder import Builder, dtype_of, rank_of
from onnxfold.passes.grad.vjp import Call, Gradients, vjp

_Read: TypeAlias = Callable[[ir.Value], ir.Value]
_Write: TypeAlias = Callable[[ir.Value, ir.Value, str], ir.Value]


@vjp("Gather")
def gather(call: Call, b: Builder) -> Gradients:
    """Added to the rows that were read, into zeros."""
    x, indices = call.x(0), call.x(1)
    axis = call.int("axis", 0) % rank_of(x)
    padded = _padded(call, b, axis)
    if padded is not None:
        return (padded,)
    return (_added_to_rows(b, x, axis, indices, call.gradient),)


@vjp("Compress")
def compress(call: Call, b: Builder) -> Gradients:
    """Put back where the condition holds, into zeros."""
    x, condition = call.x(0), call.x(1)
    rows = b.op("Squeeze", b.op("NonZero", condition), b.ints(0))
    if call.node.attributes.get("axis") is None:
        flat = b.op("Reshape", x, b.ints(-1))
        return (b.reshape_like(_added_to_rows(b, flat, 0, rows, call.gradient), x),)
    axis = call.int("axis", 0) % rank_of(x)
    return (_added_to_rows(b, x, axis, rows, call.gradient),)


@vjp("GatherElements")
def gather_elements(call: Call, b: Builder) -> Gradients:
    """Added to the elements that were read, into zeros."""
    x, axis = call.x(0), call.int("axis", 0)
    zeros = b.zeros_like(x)
    return (b.op("ScatterElements", zeros, call.x(1), call.gradient, axis=axis, reduction="add"),)


@vjp("GatherND")
def gather_nd(call: Call, b: Builder) -> Gradients:
    """Added to the slices that were read, into zeros."""
    x = call.x(0)
    places = _with_batch_places(b, call.x(1), x, call.int("batch_dims", 0))
    return (b.op("ScatterND", b.zeros_like(x), places, call.gradient, reduction="add"),)


@vjp("ScatterElements")
def scatter_elements(call: Call, b: Builder) -> Gradients:
    """To the data what was not overwritten; to the updates what they became."""
    axis = call.int("axis", 0)

    def read(value: ir.Value) -> ir.Value:
        return b.op("GatherElements", value, call.x(1), like=call.x(2), axis=axis)

    def write(into: ir.Value, what: ir.Value, how: str) -> ir.Value:
        return b.op("ScatterElements", into, call.x(1), what, axis=axis, reduction=how)

    return _scattered(call, b, read, write)


@vjp("ScatterND")
def scatter_nd(call: Call, b: Builder) -> Gradients:
    """To the data what was not overwritten; to the updates what they became."""

    def read(value: ir.Value) -> ir.Value:
        return b.op("GatherND", value, call.x(1), like=call.x(2))

    def write(into: ir.Value, what: ir.Value, how: str) -> ir.Value:
        return b.op("ScatterND", into, call.x(1), what, reduction=how)

    return _scattered(call, b, read, write)


@vjp("TensorScatter")
def tensor_scatter(call: Call, b: Builder) -> Gradients:
    """To the cache what was not overwritten; to the update the rows that it became."""
    cache, update, g = call.x(0), call.x(1), call.gradient
    axis = call.int("axis", -2) % rank_of(cache)
    mode = call.string("mode", "linear")
    d_cache = d_update = None
    if call.needed[0]:
        zeros, first = b.zeros_like(update), call.optional(2)
        d_cache = b.op("TensorScatter", g, zeros, first, axis=axis, mode=mode, like=cache)
    if call.needed[1]:
        rows = _written_rows(call, b, axis)
        if mode == "circular":
            rows = b.op("Mod", rows, b.dim(cache, axis))
        places = b.op("Expand", rows, b.shape(update))
        d_update = b.op("GatherElements", g, places, axis=axis, like=update)
    return d_cache, d_update


def _written_rows(call: Call, b: Builder, axis: int) -> ir.Value:
    """The row that each row of the update is written to, by sample."""
    update, first = call.x(1), call.optional(2)
    count = b.op("Squeeze", b.dim(update, axis), b.ints(0))
    rank = rank_of(update)
    along = b.ints(*(-1 if each == axis else 1 for each in range(rank)))
    rows = b.op("Reshape", b.op("Range", b.scalar(0), count, b.scalar(1)), along)
    if first is None:
        return rows
    by_sample = b.op("Reshape", first, b.ints(-1, *[1] * (rank - 1)))
    return b.add(b.cast(by_sample, ir.DataType.INT64), rows)


def _padded(call: Call, b: Builder, axis: int) -> ir.Value | None:
    """Where one known row of an axis of known size was read: zeros around the gradient."""
    x, indices = call.x(0), call.x(1)
    known = constant_ints(indices)
    size = None if x.shape is None else x.shape[axis]
    if known is None or len(known) != 1 or not isinstance(size, int) or rank_of(indices) > 1:
        return None
    row = known[0] % size
    g = call.gradient if rank_of(indices) else b.unsqueeze(call.gradient, axis)
    return b.op("Pad", g, b.ints(row, size - row - 1), None, b.ints(axis), like=x)


def _added_to_rows(
    b: Builder, x: ir.Value, axis: int, indices: ir.Value, gradient: ir.Value
) -> ir.Value:
    """Zeros of the shape of ``x``, with ``gradient`` added to rows of one axis."""
    rank, index_rank = rank_of(x), rank_of(indices)
    places = b.unsqueeze(b.cast(indices, ir.DataType.INT64), -1)
    # The axes of the indices come first for ScatterND, and the axis that they index, too.
    rows = list(range(axis, axis + index_rank))
    others = [each for each in range(rank - 1 + index_rank) if each not in rows]
    updates = b.transpose(gradient, [*rows, *others])
    order = [axis, *(each for each in range(rank) if each != axis)]
    zeros = b.transpose(b.zeros_like(x), order)
    found = b.op("ScatterND", zeros, places, updates, reduction="add")
    return b.transpose(found, [order.index(each) for each in range(rank)])


def _with_batch_places(b: Builder, indices: ir.Value, x: ir.Value, batch_dims: int) -> ir.Value:
    """Indices into all of ``x``: with a column for each leading dimension that was walked along."""
    places = b.cast(indices, ir.DataType.INT64)
    if not batch_dims:
        return places
    rank = rank_of(places)
    shape = b.op("Concat", b.op("Slice", b.shape(places), b.ints(0), b.ints(-1)), b.ints(1), axis=0)
    columns: list[ir.Value] = []
    for axis in range(batch_dims):
        size = b.op("Squeeze", b.dim(x, axis), b.ints(0))
        count = b.op("Range", b.scalar(0), size, b.scalar(1))
        along = b.ints(*(-1 if each == axis else 1 for each in range(rank)))
        columns.append(b.op("Expand", b.op("Reshape", count, along), shape))
    return b.op("Concat", *columns, places, axis=-1)


def _scattered(call: Call, b: Builder, read: _Read, written: _Write) -> Gradients:
    """The gradients of data and updates, for every way to combine the two."""
    data, updates, g = call.x(0), call.x(2), call.gradient
    reduction = call.string("reduction", "none")
    if reduction == "none":
        return written(g, b.zeros_like(updates), "none"), None, read(g)
    if reduction == "add":
        return g, None, read(g)
    if reduction == "mul":
        factor = written(b.full_like(data, 1), updates, "mul")
        # The product of the others, of which some may be 0: the zeros among them are counted.
        zero = b.is_zero(updates)
        count, safe = b.cast(zero, dtype_of(updates)), b.where(zero, b.number(1, updates), updates)
        others = b.sub(read(written(b.zeros_like(data), count, "add")), count)
        product = b.div(read(b.mul(g, written(data, safe, "mul"))), safe)
        return b.mul(g, factor), None, b.masked(b.is_zero(others), product)
    kept = b.cast(b.op("Equal", data, call.y()), dtype_of(data))
    chosen = b.cast(b.op("Equal", updates, read(call.y())), dtype_of(updates))
    share = b.div(g, written(kept, chosen, "add"))
    return b.mul(share, kept), None, b.mul(read(share), chosen)
