"""Gradients of normalizations within an example: layer, group, instance, RMS, Lp, and LRN."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxfold.passes.grad.builder import Builder, dtype_of, rank_of
from onnxfold.passes.grad.rules.convolution import sum_over_channels
from onnxfold.passes.grad.vjp import Call, Gradients, vjp


@vjp("LayerNormalization")
def layer_normalization(call: Call, b: Builder) -> Gradients:
    """D ((x - mean) scale / deviation + bias), over the axes from ``axis`` on."""
    x, scale = call.x(0), call.x(1)
    rank = rank_of(x)
    axes = range(call.int("axis", -1) % rank, rank)
    mean, inverse = (b.cast(b.output_of(call.node, i), dtype_of(x)) for i in (1, 2))
    normalized = b.mul(b.sub(x, mean), inverse)
    gradient, d_mean, d_inverse = (*call.gradients, None, None)[:3]
    d_x = d_scale = d_bias = None
    parts: list[ir.Value] = []
    if gradient is not None:
        parts.append(_centred_and_scaled(b, b.mul(gradient, scale), normalized, inverse, axes))
        d_scale = b.sum_to(b.mul(gradient, normalized), scale) if call.needed[1] else None
        bias = call.optional(2)
        d_bias = b.sum_to(gradient, bias) if bias is not None and call.needed[2] else None
    if d_mean is not None:
        share = _over_count(b, b.cast(d_mean, dtype_of(x)), x, axes)
        parts.append(b.expand_like(share, x))
    if d_inverse is not None:
        # 1 / sqrt(variance + epsilon) falls by its cube with half the variance.
        slope = b.neg(b.mul(b.cast(d_inverse, dtype_of(x)), b.mul(inverse, inverse)))
        parts.append(b.mul(normalized, _over_count(b, slope, x, axes)))
    if call.needed[0]:
        d_x = parts[0] if len(parts) == 1 else b.op("Sum", *parts)
    return d_x, d_scale, d_bias


@vjp("RMSNormalization")
def rms_normalization(call: Call, b: Builder) -> Gradients:
    """D (x scale / sqrt(mean(x^2) + epsilon)), over the axes from ``axis`` on."""
    x, scale, gradient = call.x(0), call.x(1), call.gradient
    rank = rank_of(x)
    axes = range(call.int("axis", -1) % rank, rank)
    squares = b.op("ReduceMean", b.mul(x, x), b.ints(*axes))
    inverse = _inverse_root(b, squares, call.float("epsilon", 1e-5))
    normalized = b.mul(x, inverse)
    d_x = d_scale = None
    if call.needed[0]:
        inner = b.mul(gradient, scale)
        along = b.op("ReduceMean", b.mul(inner, normalized), b.ints(*axes))
        d_x = b.mul(b.sub(inner, b.mul(normalized, along)), inverse)
    if call.needed[1]:
        d_scale = b.sum_to(b.mul(gradient, normalized), scale)
    return d_x, d_scale


@vjp("InstanceNormalization")
def instance_normalization(call: Call, b: Builder) -> Gradients:
    """D ((x - mean) scale / deviation + bias), over the space of each channel."""
    x, gradient = call.x(0), call.gradient
    axes = range(2, rank_of(x))
    centred = b.sub(x, b.op("ReduceMean", x, b.ints(*axes)))
    variance = b.op("ReduceMean", b.mul(centred, centred), b.ints(*axes))
    inverse = _inverse_root(b, variance, call.float("epsilon", 1e-5))
    normalized = b.mul(centred, inverse)
    d_x = d_scale = d_bias = None
    if call.needed[0]:
        scale = b.op("Reshape", call.x(1), b.ints(-1, *([1] * (rank_of(x) - 2))))
        # The scale is one number where the means are taken: it comes last, and cheap.
        d_x = _centred_and_scaled(b, gradient, normalized, b.mul(inverse, scale), axes)
    if call.needed[1]:
        d_scale = sum_over_channels(b, b.mul(gradient, normalized))
    if call.needed[2]:
        d_bias = sum_over_channels(b, gradient)
    return d_x, d_scale, d_bias


@vjp("GroupNormalization")
def group_normalization(call: Call, b: Builder) -> Gradients:
    """D ((x - mean) scale / deviation + bias), over groups of channels.

    Scale and bias have an element a channel since opset 21, and an element a group before.
    """
    x, scale, gradient = call.x(0), call.x(1), call.gradient
    groups = call.int("num_groups", 1)
    split = b.ints(0, groups, -1)
    flat = b.op("Reshape", x, split)
    centred = b.sub(flat, b.op("ReduceMean", flat, b.ints(2)))
    variance = b.op("ReduceMean", b.mul(centred, centred), b.ints(2))
    inverse = _inverse_root(b, variance, call.float("epsilon", 1e-5))
    normalized = b.mul(centred, inverse)
    a_channel = call.opset >= 21
    # [N, C, ...] where the scale has an element a channel, [N, groups, ...] where a group.
    like_scale = [b.reshape_like(normalized, x), gradient]
    if not a_channel:
        like_scale = [normalized, b.op("Reshape", gradient, split)]
    d_x = d_scale = d_bias = None
    if call.needed[0]:
        ones = [1] * (rank_of(x) - 2 if a_channel else 1)
        inner = b.mul(like_scale[1], b.op("Reshape", scale, b.ints(-1, *ones)))
        inner = b.op("Reshape", inner, split)
        d_x = b.reshape_like(_centred_and_scaled(b, inner, normalized, inverse, (2,)), x)
    if call.needed[1]:
        d_scale = sum_over_channels(b, b.mul(like_scale[1], like_scale[0]))
    if call.needed[2]:
        d_bias = sum_over_channels(b, like_scale[1])
    return d_x, d_scale, d_bias


@vjp("LpNormalization")
def lp_normalization(call: Call, b: Builder) -> Gradients:
    """D (x / |x|) = (dx - d|x| x / |x|) / |x|; 0 where the norm is."""
    x, y, gradient = call.x(0), call.y(), call.gradient
    axis, zero = b.ints(call.int("axis", -1)), b.number(0.0, x)
    absolute = call.int("p", 2) == 1
    norm = b.op("ReduceL1" if absolute else "ReduceL2", x, axis)
    direction = b.op("Sign", x) if absolute else y
    along = b.op("ReduceSum", b.mul(gradient, y), axis)
    inverse = b.where(b.op("Equal", norm, zero), zero, b.op("Reciprocal", norm))
    return (b.mul(b.sub(gradient, b.mul(direction, along)), inverse),)


@vjp("LRN")
def lrn(call: Call, b: Builder) -> Gradients:
    """D (x / base^beta), base = bias + alpha / size * the squares of neighbouring channels.

    The neighbours are summed by a product with a band matrix: the number of channels must be known.
    """
    x, y, gradient = call.x(0), call.y(), call.gradient
    size, alpha = call.int("size", 1), call.float("alpha", 1e-4) / call.int("size", 1)
    channels = None if x.shape is None else x.shape[1]
    if not isinstance(channels, int):
        raise call.refusal(f"the number of channels of '{x.name}' is not known")
    places = np.arange(channels)
    offsets = places[None, :] - places[:, None]
    band = (offsets >= -((size - 1) // 2)) & (offsets <= size // 2)
    band = np.asarray(band, dtype_of(x).numpy())
    flat = b.ints(0, 0, -1)
    squares = b.op("Reshape", b.mul(x, x), flat)
    base = b.add(
        b.mul(b.op("MatMul", b.constant(band), squares), b.number(alpha, x)),
        b.number(call.float("bias", 1.0), x),
    )
    beta = call.float("beta", 0.75)
    slope = b.div(b.op("Reshape", b.mul(gradient, y), flat), base)
    back = b.op("MatMul", b.op("Transpose", b.constant(band), perm=[1, 0]), slope)
    direct = b.div(b.op("Reshape", gradient, flat), b.op("Pow", base, b.number(beta, x)))
    through = b.mul(b.op("Reshape", x, flat), b.mul(back, b.number(2.0 * alpha * beta, x)))
    return (b.reshape_like(b.sub(direct, through), x),)


def _inverse_root(b: Builder, squares: ir.Value, epsilon: float) -> ir.Value:
    return b.op("Reciprocal", b.op("Sqrt", b.add(squares, b.number(epsilon, squares))))


def _centred_and_scaled(
    b: Builder,
    gradient: ir.Value,
    normalized: ir.Value,
    inverse: ir.Value,
    axes: Sequence[int],
) -> ir.Value:
    """Back through (x - mean) / deviation: less its mean, and its part along what came out."""
    mean = b.op("ReduceMean", gradient, b.ints(*axes))
    along = b.op("ReduceMean", b.mul(gradient, normalized), b.ints(*axes))
    return b.mul(b.sub(b.sub(gradient, mean), b.mul(normalized, along)), inverse)


def _over_count(b: Builder, value: ir.Value, x: ir.Value, axes: Sequence[int]) -> ir.Value:
    """``value`` by the number of elements of ``x`` along the last axes, from the first of them."""
    sizes = b.op("Shape", x, start=min(axes))
    return b.div(value, b.cast(b.op("ReduceProd", sizes, keepdims=0), dtype_of(x)))
