"""Gradients of pools over windows: maxima, means and norms, and of MaxUnpool and Col2Im."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxfold.passes.grad.builder import Builder, dtype_of
from onnxfold.passes.grad.rules.windows import (
    Window,
    kernel_of,
    spatial,
    spread,
    taps,
    window_of,
)
from onnxfold.passes.grad.vjp import Call, Gradients, vjp


@vjp("MaxPool")
def max_pool(call: Call, b: Builder) -> Gradients:
    """Each gradient goes to where its maximum was: to the first, where several are as large."""
    x, gradient = call.x(0), call.gradient
    if call.int("storage_order", 0):
        raise call.refusal("its Indices are in column-major order; set storage_order to 0")
    kernel = kernel_of(call)
    indices = b.output_of(call.node, 1)
    if _is_tiled(call, kernel) and x.dtype == ir.DataType.FLOAT:
        # A third of the time of scattering; onnxruntime computes it in float32 only.
        return (
            b.op(
                "MaxUnpool",
                gradient,
                indices,
                b.shape(x),
                kernel_shape=kernel,
                strides=call.ints("strides") or (1,) * len(kernel),
            ),
        )
    flat = b.ints(-1)
    zeros = b.op("Reshape", b.zeros_like(x), flat)
    places, parts = (b.op("Reshape", value, flat) for value in (indices, gradient))
    total = b.op("ScatterElements", zeros, places, parts, axis=0, reduction="add")
    return (b.reshape_like(total, x),)


def _is_tiled(call: Call, kernel: tuple[int, ...]) -> bool:
    """Whether no element is under two windows, and none lies outside."""
    ones = (1,) * len(kernel)
    strides, dilations = call.ints("strides") or ones, call.ints("dilations") or ones
    apart = all(
        stride > (size - 1) * step
        for stride, size, step in zip(strides, kernel, dilations, strict=True)
    )
    padded = any(call.ints("pads") or ()) or call.string("auto_pad", "NOTSET").startswith("SAME")
    return apart and not padded and not call.int("ceil_mode", 0)


@vjp("MaxUnpool")
def max_unpool(call: Call, b: Builder) -> Gradients:
    """Each element takes the gradient of where it was put."""
    flat = b.op("Reshape", call.gradient, b.ints(-1))
    return (b.op("Gather", flat, call.x(1), axis=0),)


@vjp("AveragePool")
def average_pool(call: Call, b: Builder) -> Gradients:
    """Each gradient, by the number of elements that were averaged, goes to all of them."""
    x = call.x(0)
    window = window_of(call, kernel_of(call), x)
    shares = b.div(call.gradient, _counts(call, b, window))
    return (_spread_evenly(call, b, shares, window),)


@vjp("LpPool")
def lp_pool(call: Call, b: Builder) -> Gradients:
    """D (sum |x|^p)^(1/p) = sum x |x|^(p-2) dx / y^(p-1)."""
    x, power = call.x(0), call.int("p", 2)
    window = window_of(call, kernel_of(call), x)
    shares = _over_norm(b, call.gradient, call.y(), power)
    return (b.mul(_spread_evenly(call, b, shares, window), _signed_power(b, x, power)),)


@vjp("GlobalAveragePool")
def global_average_pool(call: Call, b: Builder) -> Gradients:
    """Each gradient, by the number of elements, goes to all of them."""
    x = call.x(0)
    return (b.expand_like(b.div(call.gradient, _spatial_count(b, x)), x),)


@vjp("GlobalMaxPool")
def global_max_pool(call: Call, b: Builder) -> Gradients:
    """Each gradient goes to the maximum: to the first, where several are as large, as MaxPool."""
    x = call.x(0)
    rows = b.ints(0, 0, -1)
    flat = b.op("Reshape", x, rows)
    places = b.op("ArgMax", flat, axis=2, keepdims=1)
    zeros = b.op("Reshape", b.zeros_like(x), rows)
    parts = b.op("Reshape", call.gradient, rows)
    return (b.reshape_like(b.op("ScatterElements", zeros, places, parts, axis=2), x),)


@vjp("GlobalLpPool")
def global_lp_pool(call: Call, b: Builder) -> Gradients:
    """D (sum |x|^p)^(1/p) = sum x |x|^(p-2) dx / y^(p-1)."""
    x, power = call.x(0), call.int("p", 2)
    shares = _over_norm(b, call.gradient, call.y(), power)
    return (b.mul(_signed_power(b, x, power), shares),)


@vjp("Col2Im")
def col2im(call: Call, b: Builder) -> Gradients:
    """Each column takes the gradients of where it was added: what im2col reads of them."""
    x, gradient = call.x(0), call.gradient
    kernel = call.constant_ints(2) or ()
    window = window_of(call, kernel, gradient)
    read = [b.op("Reshape", tap, b.ints(0, 0, 1, -1)) for tap in taps(b, gradient, window)]
    columns = b.op("Concat", *read, axis=2)
    return (b.reshape_like(columns, x),)


def _spread_evenly(call: Call, b: Builder, shares: ir.Value, window: Window) -> ir.Value:
    """Add each share to every element under its window; images of one channel, whatever C is."""
    x = call.x(0)
    ones = b.constant(np.ones((1, 1, *window.kernel), dtype_of(x).numpy()))
    images, planes = (_one_channel(b, value) for value in (x, shares))
    if call.int("ceil_mode", 0):
        window = _with_overhang(window, x, call.y())
    return b.reshape_like(spread(b, planes, ones, images, window, 1), x)


def _one_channel(b: Builder, value: ir.Value) -> ir.Value:
    """[N, C, spatial ...] as [N C, 1, spatial ...]."""
    sizes = spatial(value)
    if sizes is not None:
        return b.op("Reshape", value, b.ints(-1, 1, *sizes))
    target = b.op("Concat", b.ints(-1, 1), b.op("Shape", value, start=2), axis=0)
    return b.op("Reshape", value, target)


def _with_overhang(window: Window, x: ir.Value, y: ir.Value) -> Window:
    """``window`` padded behind as far as ceil_mode lets the last one reach."""
    inner, outer = spatial(x), spatial(y)
    if inner is None or outer is None:
        # Enough for whatever the sizes are: what is too much is cut at run time.
        return replace(window, after=(0,) * len(window.kernel))
    used = _used(window, outer)
    after = tuple(
        max(size - left - inside, 0)
        for size, left, inside in zip(used, window.before, inner, strict=True)
    )
    return replace(window, after=after)


def _used(window: Window, sizes: Sequence[int]) -> tuple[int, ...]:
    """How many padded elements windows in the given numbers reach over."""
    return tuple(
        (size - 1) * stride + extent
        for size, stride, extent in zip(sizes, window.strides, window.extents, strict=True)
    )


def _counts(call: Call, b: Builder, window: Window) -> ir.Value:
    """How many elements each window averages: a number, or [1, 1, output sizes ...]."""
    x, y = call.x(0), call.y()
    inner, outer = spatial(x), spatial(y)
    padded, ceil = bool(call.int("count_include_pad", 0)), bool(call.int("ceil_mode", 0))
    volume = float(np.prod(window.kernel))
    if not ceil and (padded or not any(window.pads)):
        return b.number(volume, x)
    if inner is None or outer is None:
        return _counts_at_run_time(call, b, window, padded)
    found = np.ones((1, 1, *outer))
    for axis, size in enumerate(outer):
        first, last = (-window.before[axis], inner[axis] + window.after[axis])
        bounds = (first, last) if padded else (0, inner[axis])
        places = first + np.arange(size)[:, None] * window.strides[axis]
        places = places + np.arange(window.kernel[axis]) * window.dilations[axis]
        inside = ((places >= bounds[0]) & (places < bounds[1])).sum(axis=1)
        found = found * inside.reshape([-1 if i == axis + 2 else 1 for i in range(found.ndim)])
    return b.constant(found.astype(dtype_of(x).numpy()))


def _counts_at_run_time(call: Call, b: Builder, window: Window, padded: bool) -> ir.Value:
    """Pool ones, which stand where elements count, and multiply with the kernel's size."""
    x = call.x(0)
    ones = ir.tensor(np.ones(1, dtype_of(x).numpy()))
    shape = b.op("Concat", b.ints(1, 1), b.op("Shape", x, start=2), axis=0)
    plane = b.op("ConstantOfShape", shape, value=ones)
    fill = 1.0 if padded else 0.0
    behind = window.after
    if call.int("ceil_mode", 0):
        behind = tuple(stride - 1 for stride in window.strides)
        inner = b.ints(0, 0, *window.before, 0, 0, *window.after)
        plane = b.op("Pad", plane, inner, b.number(fill, x))
        pads = b.ints(0, 0, *([0] * len(behind)), 0, 0, *behind)
        plane = b.op("Pad", plane, pads)
    else:
        plane = b.op("Pad", plane, b.ints(0, 0, *window.before, 0, 0, *behind), b.number(fill, x))
    kernel = b.constant(np.ones((1, 1, *window.kernel), dtype_of(x).numpy()))
    counts = b.op("Conv", plane, kernel, strides=window.strides, dilations=window.dilations)
    return _cut_to(b, counts, call.y()) if call.int("ceil_mode", 0) else counts


def _cut_to(b: Builder, value: ir.Value, like: ir.Value) -> ir.Value:
    axes = range(2, len(like.shape or ()))
    ends = b.op("Shape", like, start=2)
    return b.op("Slice", value, b.ints(*(0 for _ in axes)), ends, b.ints(*axes))


def _spatial_count(b: Builder, x: ir.Value) -> ir.Value:
    """How many elements a channel of ``x`` has, as a number of its type."""
    sizes = spatial(x)
    if sizes is not None:
        return b.number(float(np.prod(sizes)), x)
    count = b.op("ReduceProd", b.op("Shape", x, start=2), keepdims=0)
    return b.cast(count, dtype_of(x))


def _signed_power(b: Builder, x: ir.Value, power: int) -> ir.Value:
    """X |x|^(p-2)."""
    if power == 1:
        return b.op("Sign", x)
    if power == 2:
        return x
    grown = b.op("Pow", b.op("Abs", x), b.number(power - 1.0, x))
    return b.mul(b.op("Sign", x), grown)


def _over_norm(b: Builder, gradient: ir.Value, norm: ir.Value, power: int) -> ir.Value:
    """``gradient`` / norm^(p-1); 0 where the norm is, which has no derivative there."""
    if power == 1:
        return gradient
    zero = b.number(0.0, norm)
    shrunk = norm if power == 2 else b.op("Pow", norm, b.number(power - 1.0, norm))
    return b.where(b.op("Equal", norm, zero), zero, b.div(gradient, shrunk))
