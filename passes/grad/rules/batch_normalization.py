"""Gradients of BatchNormalization: with frozen statistics, and with the batch's own."""

from __future__ import annotations

import onnx_ir as ir

from onnxfold.passes.grad.builder import Builder, dtype_of, rank_of
from onnxfold.passes.grad.rules.convolution import sum_over_channels
from onnxfold.passes.grad.vjp import Call, Gradients, vjp


@vjp("BatchNormalization")
def batch_normalization(call: Call, b: Builder) -> Gradients:
    """D ((x - mean) scale / sqrt(variance + epsilon) + shift), as the node computes it.

    A node in inference mode keeps its statistics, which are inputs like others; one in training
    mode normalizes by those of the batch, and its running statistics are outputs like others.
    """
    if call.int("training_mode", 0):
        return _training(call, b)
    return _inference(call, b)


def _inference(call: Call, b: Builder) -> Gradients:
    x, scale, mean = call.x(0), call.x(1), call.x(3)
    gradient = call.gradient
    inverse = _inverse_deviation(call, b, call.x(4))
    factor = b.mul(b.cast(scale, dtype_of(inverse)), inverse)
    d_x = d_scale = d_mean = d_variance = total = None
    if call.needed[0]:
        d_x = b.mul(gradient, _per_channel(b, factor, x))
    if call.needed[2] or call.needed[3]:
        total = sum_over_channels(b, gradient)
    if call.needed[1] or call.needed[4]:
        # Centred first: sum(dY X) - mean sum(dY) loses digits where the mean is large.
        centred = b.sub(x, _per_channel(b, mean, x))
        d_scale = b.mul(sum_over_channels(b, b.mul(gradient, centred)), _as(b, inverse, x))
    if total is not None and call.needed[3]:
        d_mean = b.neg(b.mul(total, _as(b, factor, x)))
    if d_scale is not None and call.needed[4]:
        share = b.mul(_as(b, b.mul(factor, inverse), x), b.number(-0.5, x))
        d_variance = b.mul(d_scale, share)
    wanted = (d_x, d_scale, total, d_mean, d_variance)
    return [
        None if found is None or not need else _as(b, found, value)
        for found, need, value in zip(wanted, call.needed, _inputs(call), strict=True)
    ]


def _training(call: Call, b: Builder) -> Gradients:
    """By the batch's mean and its variance, by N; running statistics follow them by momentum."""
    x, scale = call.x(0), call.x(1)
    axes = (0, *range(2, rank_of(x)))
    mean = b.op("ReduceMean", x, b.ints(*axes))
    centred = b.sub(x, mean)
    variance = b.op("ReduceMean", b.mul(centred, centred), b.ints(*axes))
    inverse = _inverse_deviation(call, b, variance)
    normalized = b.mul(centred, inverse)
    momentum = call.float("momentum", 0.9)
    d_x, d_scale, d_shift, d_mean, d_variance = [None] * 5
    gradient, d_running_mean, d_running_variance = (*call.gradients, None, None)[:3]
    parts: list[ir.Value] = []
    if gradient is not None:
        d_scale = sum_over_channels(b, b.mul(gradient, normalized))
        d_shift = sum_over_channels(b, gradient)
        shares = [_per_channel(b, _over_count(b, d, x), x) for d in (d_shift, d_scale)]
        inner = b.sub(b.sub(gradient, shares[0]), b.mul(normalized, shares[1]))
        parts.append(b.mul(inner, b.mul(_per_channel(b, scale, x), inverse)))
    if d_running_mean is not None:
        d_mean = b.mul(d_running_mean, b.number(momentum, d_running_mean))
        own = b.mul(d_running_mean, b.number(1.0 - momentum, d_running_mean))
        share = _per_channel(b, _over_count(b, _as(b, own, x), x), x)
        parts.append(b.expand_like(share, x))
    if d_running_variance is not None:
        d_variance = b.mul(d_running_variance, b.number(momentum, d_running_variance))
        own = b.mul(d_running_variance, b.number(2.0 - 2.0 * momentum, d_running_variance))
        share = _per_channel(b, _over_count(b, _as(b, own, x), x), x)
        parts.append(b.mul(centred, share))
    if parts:
        d_x = parts[0] if len(parts) == 1 else b.op("Sum", *parts)
    return d_x, d_scale, d_shift, d_mean, d_variance


def _inputs(call: Call) -> list[ir.Value]:
    return [call.x(index) for index in range(5)]


def _inverse_deviation(call: Call, b: Builder, variance: ir.Value) -> ir.Value:
    epsilon = b.number(call.float("epsilon", 1e-5), variance)
    return b.op("Reciprocal", b.op("Sqrt", b.add(variance, epsilon)))


def _per_channel(b: Builder, vector: ir.Value, x: ir.Value) -> ir.Value:
    """[C] as [C, 1 ...], which broadcasts against ``x``, in its element type."""
    shaped = b.op("Reshape", vector, b.ints(-1, *([1] * (rank_of(x) - 2))))
    return _as(b, shaped, x)


def _as(b: Builder, value: ir.Value, like: ir.Value) -> ir.Value:
    return b.cast(value, dtype_of(like))


def _over_count(b: Builder, sums: ir.Value, x: ir.Value) -> ir.Value:
    """``sums``, [C], by the number of elements that a channel of the batch has."""
    sizes = b.op("Concat", b.dim(x, 0), b.op("Shape", x, start=2), axis=0)
    return b.div(sums, b.cast(b.op("ReduceProd", sizes, keepdims=0), dtype_of(x)))
