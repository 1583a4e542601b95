"""Gradients of convolutions and transposed convolutions."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from onnxfold.passes.grad.builder import Builder
from onnxfold.passes.grad.rules.convolution_weights import weight_gradient
from onnxfold.passes.grad.rules.windows import (
    Window,
    kernel_of,
    spatial,
    spread,
    window_of,
    with_total_pads,
)
from onnxfold.passes.grad.vjp import Call, Gradients, vjp


@vjp("Conv")
def conv(call: Call, b: Builder) -> Gradients:
    """The gradient of X is a transposed convolution; dW correlates X with dY; dB sums dY."""
    x, weight, gradient = call.x(0), call.x(1), call.gradient
    window, group = window_of(call, kernel_of(call, weight), x), call.int("group", 1)
    d_x = d_weight = None
    if call.needed[0]:
        d_x = spread(b, gradient, weight, x, window, group)
    if call.needed[1]:
        d_weight = weight_gradient(call, b, x, gradient, weight, window)
    return d_x, d_weight, _bias_gradient(call, b)


@vjp("ConvTranspose")
def conv_transpose(call: Call, b: Builder) -> Gradients:
    """The gradient of X is the convolution of dY; dW correlates dY with X; dB sums dY."""
    x, weight, gradient = call.x(0), call.x(1), call.gradient
    window, group = _transposed_window(call, kernel_of(call, weight), x), call.int("group", 1)
    d_x = d_weight = None
    if call.needed[0]:
        d_x = b.op(
            "Conv",
            gradient,
            weight,
            like=x,
            group=group,
            kernel_shape=window.kernel,
            strides=window.strides,
            dilations=window.dilations,
            pads=window.pads,
        )
    if call.needed[1]:
        d_weight = weight_gradient(call, b, gradient, x, weight, window)
    return d_x, d_weight, _bias_gradient(call, b)


def sum_over_channels(b: Builder, gradient: ir.Value) -> ir.Value:
    """The sum of [N, C, spatial ...] for each channel: [C]."""
    if gradient.shape is not None and len(gradient.shape) < 3:
        return b.reduce_sum(gradient, 0, keepdims=False)
    # Reducing one flat dimension takes half the time of reducing several.
    flat = b.op("Reshape", gradient, b.ints(0, 0, -1))
    return b.reduce_sum(flat, 0, 2, keepdims=False)


def _bias_gradient(call: Call, b: Builder) -> ir.Value | None:
    if len(call.needed) < 3 or not call.needed[2]:
        return None
    return sum_over_channels(b, call.gradient)


def _transposed_window(call: Call, kernel: tuple[int, ...], x: ir.Value) -> Window:
    """The window that a convolution slides over the output to undo ``call``.

    What auto_pad and output_shape mean follows the formulas of the operator's documentation.
    """
    auto_pad, declared = call.string("auto_pad", "NOTSET"), call.ints("output_shape")
    ones = (1,) * len(kernel)
    padding = call.ints("output_padding") or (0,) * len(kernel)
    zeros = (0,) * len(kernel)
    pads = call.ints("pads") or zeros + zeros
    strides, dilations = call.ints("strides") or ones, call.ints("dilations") or ones
    if any(more >= stride for more, stride in zip(padding, strides, strict=True)):
        raise call.refusal("its output_padding is a stride or more")
    window = Window(kernel, strides, dilations, pads[: len(kernel)], pads[len(kernel) :])
    if declared is None and auto_pad in ("NOTSET", "VALID"):
        return window if auto_pad == "NOTSET" else replace(window, before=zeros, after=zeros)
    if declared is None:
        pairs = zip(window.extents, strides, strict=True)
        lengths = tuple(extent - stride for extent, stride in pairs)
    else:
        sizes = spatial(x)
        if sizes is None:
            raise call.refusal(f"it has an output_shape, but the size of '{x.name}' is not known")
        lengths = tuple(
            stride * (size - 1) + extent - wanted
            for stride, size, extent, wanted in zip(
                strides, sizes, window.extents, declared[-len(kernel) :], strict=True
            )
        )
    totals = tuple(max(length + more, 0) for length, more in zip(lengths, padding, strict=True))
    return with_total_pads(window, totals, auto_pad)
