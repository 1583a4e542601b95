"""Gradients of what is read from regions of interest: RoiAlign."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfold.passes.grad.builder import Builder, dtype_of
from onnxfold.passes.grad.compositions import gradients_through
from onnxfold.passes.grad.rules.grid_sample import sum_of_neighbours
from onnxfold.passes.grad.rules.interpolation import Taps, inside, linear_taps
from onnxfold.passes.grad.vjp import Call, Gradients, vjp


@vjp("RoiAlign")
def roi_align(call: Call, b: Builder) -> Gradients:
    """Means of linearly interpolated samples, whose number in a bin is given."""
    samples = call.int("sampling_ratio", 0)
    if call.string("mode", "avg") != "avg" or samples <= 0:
        raise call.refusal("it has to take the mean of a fixed number of samples (sampling_ratio)")
    x, regions, batch = call.x(0), call.x(1), call.x(2)
    rows, columns = call.int("output_height", 1), call.int("output_width", 1)
    # [1, C, N, H, W]: every sample is one place of one large image, whatever image it is in.
    image = b.unsqueeze(b.op("Transpose", x, perm=[1, 0, 2, 3]), 0)
    full = b.op("Concat", b.dim(regions, 0), b.ints(rows * samples, columns * samples), axis=0)
    numbers = b.op("Expand", b.unsqueeze(batch, 1, 2), full)
    taps = [
        Taps(b.op("Reshape", numbers, b.ints(1, 1, -1)), None, 1),
        _samples(call, b, 2, rows, b.dim(x, 2), full),
        _samples(call, b, 3, columns, b.dim(x, 3), full),
    ]
    target = b.op(
        "Concat",
        b.dim(x, 1),
        b.dim(regions, 0),
        b.ints(rows, samples, columns, samples),
        axis=0,
    )
    split = b.op("Reshape", sum_of_neighbours(b, image, taps), target)
    means = b.op("ReduceMean", split, b.ints(3, 5), keepdims=0)
    return gradients_through(call, b, [b.op("Transpose", means, perm=[1, 0, 2, 3])])


def _samples(call: Call, b: Builder, axis: int, bins: int, size: ir.Value, full: ir.Value) -> Taps:
    """The neighbours of every sample along one axis, [1, 2, samples]."""
    regions, samples = call.x(1), call.int("sampling_ratio", 0)
    centred = call.string("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    # A region is (x, y) of its first corner, then (x, y) of its last.
    first, last = (
        b.scale(b.op("Slice", regions, b.ints(edge), b.ints(edge + 1), b.ints(1)),
                call.float("spatial_scale", 1.0))
        for edge in (3 - axis, 5 - axis)
    )  # fmt: skip
    length = b.sub(last, first)
    if centred:
        first = b.sub(first, b.number(0.5, first))
    else:
        length = b.op("Max", length, b.number(1.0, length))
    steps = (np.arange(bins * samples) + 0.5) / (bins * samples)
    position = b.add(b.mul(length, b.constant(steps.astype(dtype_of(regions).numpy()))), first)
    position = b.op("Expand", b.unsqueeze(position, 2 if axis == 2 else 1), full)
    position = b.op("Reshape", position, b.ints(1, 1, -1))
    size = b.cast(size, dtype_of(regions))
    end = b.sub(size, b.number(1.0, size))
    near = b.op("Min", b.op("Max", position, b.number(0.0, position)), end)
    # What lies more than one element outside counts as 0.
    above = b.op("GreaterOrEqual", position, b.number(-1.0, position))
    counts = b.cast(b.op("And", above, b.op("LessOrEqual", position, size)), dtype_of(position))
    taps = inside(b, linear_taps(b, near), end, zeros=False)
    weight = counts if taps.weight is None else b.mul(taps.weight, counts)
    return Taps(taps.index, weight, taps.count)
