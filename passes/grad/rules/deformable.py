"""The gradient of DeformConv: of the image, the weights, the offsets and the mask."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx_ir as ir

from onnxfold.passes.grad.builder import Builder, dtype_of, rank_of
from onnxfold.passes.grad.compositions import gradients_through
from onnxfold.passes.grad.rules.grid_sample import sum_of_neighbours
from onnxfold.passes.grad.rules.interpolation import Taps, inside, linear_taps
from onnxfold.passes.grad.rules.windows import Window, kernel_of, window_of
from onnxfold.passes.grad.vjp import Call, Gradients, vjp


@vjp("DeformConv")
def deform_conv(call: Call, b: Builder) -> Gradients:
    """A product of the weights with what each tap reads where its offset has moved it to."""
    x, weight, offset = call.x(0), call.x(1), call.x(2)
    dims = () if weight.shape is None else tuple(weight.shape)[:2]
    outer, inner = dims if len(dims) == 2 else (None, None)
    if rank_of(x) != 4 or not isinstance(outer, int) or not isinstance(inner, int):
        raise call.refusal("it has to be two-dimensional, with a weight of known shape")
    window, groups = window_of(call, kernel_of(call, weight), x), call.int("offset_group", 1)
    count, group = int(np.prod(window.kernel)), call.int("group", 1)
    space = b.op("Shape", offset, start=2)
    # [N * offset groups, taps, 2, rows, columns]: each group is an image of its own.
    moved = b.op("Reshape", offset, b.op("Concat", b.ints(-1, count, 2), space, axis=0))
    taps = [_taps(b, window, x, moved, axis) for axis in (0, 1)]
    channels = group * inner // groups
    image = b.op("Reshape", x, b.op("Concat", b.ints(-1, channels), b.op("Shape", x, start=2),
                                    axis=0))  # fmt: skip
    read = sum_of_neighbours(b, image, taps)
    mask = call.optional(4)
    if mask is not None:
        places = b.op("Concat", b.dim(image, 0), b.ints(1, -1), axis=0)
        read = b.mul(read, b.op("Reshape", mask, places))
    columns = b.op("Concat", b.dim(x, 0), b.ints(group, inner * count, -1), axis=0)
    rows = b.op("Reshape", weight, b.ints(group, outer // group, inner * count))
    found = b.reshape_like(b.op("MatMul", rows, b.op("Reshape", read, columns)), call.y())
    bias = call.optional(3)
    if bias is not None:
        found = b.add(found, b.op("Reshape", bias, b.ints(-1, 1, 1)))
    return gradients_through(call, b, [found])


def _taps(b: Builder, window: Window, x: ir.Value, moved: ir.Value, axis: int) -> Taps:
    """The neighbours of every tap of every window along one axis, [images, 2, taps * places]."""
    dtype = dtype_of(moved)
    offset = b.op("Gather", moved, b.scalar(axis), axis=2)
    count = b.op("Squeeze", b.op("Shape", moved, start=3 + axis, end=4 + axis), b.ints(0))
    starts = b.cast(b.op("Range", b.scalar(0), count, b.scalar(1)), dtype)
    starts = b.scale(starts, window.strides[axis])
    starts = starts if axis else b.unsqueeze(starts, 1)
    places = [tap[axis] for tap in product(*(range(size) for size in window.kernel))]
    reach = np.array(places) * window.dilations[axis] - window.before[axis]
    base = b.add(b.constant(reach.astype(dtype.numpy()).reshape(-1, 1, 1)), starts)
    position = b.op("Reshape", b.add(offset, base), b.ints(0, 1, -1))
    size = b.cast(b.dim(x, 2 + axis), dtype)
    last = b.sub(size, b.number(1.0, size))
    return inside(b, linear_taps(b, position), last, zeros=True)
