"""Gradients of what moves borders: Pad and CenterCropPad."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxfold.passes.constants import constant_ints
from onnxfold.passes.grad.builder import Builder, rank_of
from onnxfold.passes.grad.rules.axis_matrices import identity_of, times_transposed
from onnxfold.passes.grad.rules.windows import END
from onnxfold.passes.grad.vjp import Call, Gradients, vjp


@vjp("Pad")
def pad(call: Call, b: Builder) -> Gradients:
    """Constant borders are cut off again; what was mirrored, repeated or wrapped is added back."""
    x, pads, gradient = call.x(0), call.x(1), call.gradient
    if call.string("mode", "constant") != "constant":
        return (_folded_back(call, b),)
    axes = call.optional(3)
    d_x = d_value = None
    if call.needed[0]:
        known = constant_ints(pads)
        if known is None:
            d_x = b.op("Pad", gradient, b.neg(pads), None, axes, like=x)
        else:
            d_x = _unpadded(b, gradient, known, axes)
    value = call.optional(2)
    if value is not None and call.needed[2]:
        outside = b.op("Pad", b.zeros_like(x), pads, b.number(1.0, x), axes)
        d_value = b.op("ReduceSum", b.mul(gradient, outside), keepdims=0)
        d_value = b.reshape_like(d_value, value)
    return d_x, None, d_value


@vjp("CenterCropPad")
def center_crop_pad(call: Call, b: Builder) -> Gradients:
    """The same back to the first shape: what was cropped is padded, what was padded cropped."""
    x = call.x(0)
    declared = call.ints("axes")
    axes = range(rank_of(x)) if declared is None else [axis % rank_of(x) for axis in declared]
    sizes = [b.dim(x, axis) for axis in axes]
    wanted = sizes[0] if len(sizes) == 1 else b.op("Concat", *sizes, axis=0)
    return (b.op("CenterCropPad", call.gradient, wanted, like=x, axes=list(axes)),)


def _unpadded(
    b: Builder, gradient: ir.Value, pads: Sequence[int], axes: ir.Value | None
) -> ir.Value:
    """What pads added is cut off; zeros come back for what negative ones had cropped."""
    count = len(pads) // 2
    if any(pad > 0 for pad in pads):
        starts = b.ints(*(max(pad, 0) for pad in pads[:count]))
        ends = b.ints(*(-pad if pad > 0 else END for pad in pads[count:]))
        gradient = b.op("Slice", gradient, starts, ends, axes)
    if any(pad < 0 for pad in pads):
        gradient = b.op("Pad", gradient, b.ints(*(max(-pad, 0) for pad in pads)), None, axes)
    return gradient


def _folded_back(call: Call, b: Builder) -> ir.Value:
    x, gradient = call.x(0), call.gradient
    axes, rank = _axes(call), rank_of(x)
    known = constant_ints(call.x(1))
    for place, axis in enumerate(axes):
        if known is not None and not known[place] and not known[len(axes) + place]:
            continue
        before, after = (
            b.op("Slice", call.x(1), b.ints(edge), b.ints(edge + 1))
            for edge in (place, len(axes) + place)
        )
        columns = b.op("Concat", before, after, axis=0)
        identity = identity_of(b, x, axis)
        mode = call.string("mode", "constant")
        matrix = b.op("Pad", identity, columns, None, b.ints(1), mode=mode)
        gradient = times_transposed(b, gradient, matrix, axis, rank)
    return b.reshape_like(gradient, x)


def _axes(call: Call) -> list[int]:
    rank, axes = rank_of(call.x(0)), call.constant_ints(3)
    return list(range(rank)) if axes is None else [axis % rank for axis in axes]
