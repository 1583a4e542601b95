"""The gradient of a convolution's weights: what each tap read, correlated with the gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from onnxfold.passes.grad.builder import Builder
from onnxfold.passes.grad.rules.windows import Window, spatial, taps
from onnxfold.passes.grad.vjp import Call

_FEW_CHANNELS = 8
_WIDE = 128
_MANY_TAPS = 64
"""Above it, the nodes a tap would be more than a model should have."""


def weight_gradient(
    call: Call, b: Builder, x: ir.Value, gradient: ir.Value, weight: ir.Value, window: Window
) -> ir.Value:
    """dW[o, i, tap] = sum over n and u of dY[n, o, u] X[n, i, u stride + tap dilation - pad].

    Args:
        call: The node; says the number of groups.
        b: Writes the nodes.
        x: What the window is slid over, [N, C, spatial ...].
        gradient: Of what comes out, [N, O, spatial ...].
        weight: [O, C / group, kernel ...].
        window: The window.

    Raises:
        UsageError: There are groups, and the channels of the weight are not known.
    """
    group = call.int("group", 1)
    outer, inner = _channels(weight)
    if group > 1 and (outer is None or inner is None):
        raise call.refusal(f"it has groups, but the shape of '{weight.name}' is not known")
    split = [] if outer is None or inner is None else [group, outer // group, inner]
    read = taps(b, x, window)
    if math.prod(window.kernel) > _MANY_TAPS:
        found = _swapped(b, x, gradient, window, split[0] if split else 1)
        return b.reshape_like(found, weight)
    if group == 1 and _is_wide(split, gradient):
        return b.reshape_like(_flat(b, x, gradient, window), weight)
    read = list(taps(b, x, window))
    if split and group > 1 and inner == 1:
        found = _depthwise(b, read, gradient, split)
    elif split and split[2] < _FEW_CHANNELS:
        found = _gathered(b, read, gradient, split)
    else:
        found = _tap_by_tap(b, read, gradient, split)
    return b.reshape_like(found, weight)


def _channels(weight: ir.Value) -> tuple[int | None, int | None]:
    dims = [None, None] if weight.shape is None else list(weight.shape)[:2]
    outer, inner = (dim if isinstance(dim, int) else None for dim in dims)
    return outer, inner


def _is_wide(split: Sequence[int], gradient: ir.Value) -> bool:
    """Whether the products of single images are larger than what is multiplied."""
    sizes = spatial(gradient)
    return bool(split) and sizes is not None and split[1] * split[2] > _WIDE * math.prod(sizes)


def _depthwise(
    b: Builder, read: Sequence[ir.Value], gradient: ir.Value, split: Sequence[int]
) -> ir.Value:
    """[C, taps]: products and sums, where a product of matrices would have one row each."""
    group, multiplier, _ = split
    # With as many channels out as in, elementwise products need no broadcasting.
    few = [0, 0, -1] if multiplier == 1 else [0, group, 1, -1]
    many = [0, 0, -1] if multiplier == 1 else [0, group, multiplier, -1]
    flat = b.op("Reshape", gradient, b.ints(*many))
    sums = [
        b.reduce_sum(b.mul(flat, b.op("Reshape", tap, b.ints(*few))), len(many) - 1) for tap in read
    ]
    return b.reduce_sum(_joined(b, sums, len(many) - 1), 0, keepdims=False)


def _gathered(
    b: Builder, read: Sequence[ir.Value], gradient: ir.Value, split: Sequence[int]
) -> ir.Value:
    """[G, O / G, C / G * taps]: one product of all taps at once, which few channels make thick."""
    group, outer, inner = split
    columns = [b.op("Reshape", tap, b.ints(0, group, inner, 1, -1)) for tap in read]
    gathered = b.op("Reshape", _joined(b, columns, 3), b.ints(0, group, inner * len(read), -1))
    flat = b.op("Reshape", gradient, b.ints(0, group, outer, -1))
    product = b.op("MatMul", flat, b.op("Transpose", gathered, perm=[0, 1, 3, 2]))
    return b.reduce_sum(product, 0, keepdims=False)


def _tap_by_tap(
    b: Builder, read: Sequence[ir.Value], gradient: ir.Value, split: Sequence[int]
) -> ir.Value:
    """[G, O / G, C / G, taps]: a product a tap; the fastest, and copies one tap at a time."""
    grouped = bool(split) and split[0] > 1
    rows = [0, split[0], split[1], -1] if grouped else [0, 0, -1]
    columns = [0, split[0], split[2], -1] if grouped else [0, 0, -1]
    turned = [0, 1, 3, 2] if grouped else [0, 2, 1]
    flat = b.op("Reshape", gradient, b.ints(*rows))
    products: list[ir.Value] = []
    for tap in read:
        column = b.op("Transpose", b.op("Reshape", tap, b.ints(*columns)), perm=turned)
        products.append(b.reduce_sum(b.op("MatMul", flat, column), 0))
    last = len(rows) - 1
    return b.op("Transpose", _joined(b, products, 0), perm=[*range(1, last + 1), 0])


def _flat(b: Builder, x: ir.Value, gradient: ir.Value, window: Window) -> ir.Value:
    """[O, C, taps]: a product a tap over the whole batch, with one result instead of N to sum."""
    swapped = [1, 0, *window.axes]
    rows = b.op("Flatten", b.op("Transpose", gradient, perm=swapped))
    products: list[ir.Value] = []
    for tap in taps(b, b.op("Transpose", x, perm=swapped), window):
        product = b.op("Gemm", rows, b.op("Flatten", tap), transB=1)
        products.append(b.unsqueeze(product, 0))
    return b.op("Transpose", _joined(b, products, 0), perm=[1, 2, 0])


def _swapped(b: Builder, x: ir.Value, gradient: ir.Value, window: Window, group: int) -> ir.Value:
    """[O, C / G, kernel ...]: X convolved with dY, where strides and dilations change places.

    Half as fast as products of single taps, but one node however many there are.
    """
    apart, swapped = window.axes, [1, 0, *window.axes]
    if group == 1:
        images = b.op("Transpose", x, perm=swapped)
    else:
        space = b.op("Shape", x, start=2)
        split = b.op("Reshape", x, b.op("Concat", b.ints(0, group, -1), space, axis=0))
        turned = b.op("Transpose", split, perm=[2, 1, 0, *(axis + 1 for axis in apart)])
        shape = b.op("Concat", b.op("Shape", turned, end=1), b.ints(-1), space, axis=0)
        images = b.op("Reshape", turned, shape)
    found = b.op(
        "Conv",
        images,
        b.op("Transpose", gradient, perm=swapped),
        group=group,
        strides=window.dilations,
        dilations=window.strides,
        pads=window.pads,
    )
    # What no window covers behind the last one makes taps that the kernel has not.
    zeros, axes = b.ints(*(0 for _ in apart)), b.ints(*apart)
    kernel = b.op("Slice", found, zeros, b.ints(*window.kernel), axes)
    return b.op("Transpose", kernel, perm=swapped)


def _joined(b: Builder, values: Sequence[ir.Value], axis: int) -> ir.Value:
    return values[0] if len(values) == 1 else b.op("Concat", *values, axis=axis)
