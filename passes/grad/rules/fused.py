"""Gradients of onnxruntime's fused float operators: through the operators that were fused."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir

from onnxfold.passes.grad.builder import Builder, rank_of
from onnxfold.passes.grad.compositions import gradients_through
from onnxfold.passes.grad.vjp import Call, Gradients, vjp

_DOMAIN = "com.microsoft"


@vjp(f"{_DOMAIN}::Gelu", f"{_DOMAIN}::BiasGelu")
def gelu(call: Call, b: Builder) -> Gradients:
    """X (1 + erf(x / sqrt 2)) / 2, of x with a bias where there is one."""
    x = _with(b, call.x(0), call.optional(1))
    curve = b.op("Erf", b.scale(x, math.sqrt(0.5)))
    halves = b.scale(b.add(curve, b.number(1.0, x)), 0.5)
    return gradients_through(call, b, [b.mul(x, halves)])


@vjp(f"{_DOMAIN}::FastGelu")
def fast_gelu(call: Call, b: Builder) -> Gradients:
    """X (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, of x with a bias where there is one."""
    x = _with(b, call.x(0), call.optional(1))
    cubic = b.add(b.scale(b.mul(b.mul(x, x), x), 0.044715), x)
    curve = b.op("Tanh", b.scale(cubic, math.sqrt(2 / math.pi)))
    halves = b.scale(b.add(curve, b.number(1.0, x)), 0.5)
    return gradients_through(call, b, [b.mul(x, halves)])


@vjp(f"{_DOMAIN}::QuickGelu")
def quick_gelu(call: Call, b: Builder) -> Gradients:
    """X sigmoid(alpha x)."""
    x = call.x(0)
    gate = b.op("Sigmoid", b.scale(x, call.float("alpha", 1.702)))
    return gradients_through(call, b, [b.mul(x, gate)])


@vjp(f"{_DOMAIN}::FusedMatMul")
def fused_matmul(call: Call, b: Builder) -> Gradients:
    """Alpha A B, of matrices that are transposed first where the node says so."""
    if call.int("transBatchA", 0) or call.int("transBatchB", 0):
        raise call.refusal("it transposes batch dimensions")
    left, right = (
        _turned(b, call.x(index)) if call.int(name, 0) else call.x(index)
        for index, name in enumerate(("transA", "transB"))
    )
    product = b.op("MatMul", left, right)
    return gradients_through(call, b, [b.scale(product, call.float("alpha", 1.0))])


@vjp(f"{_DOMAIN}::FusedGemm")
def fused_gemm(call: Call, b: Builder) -> Gradients:
    """An activation of Gemm."""
    product = b.op(
        "Gemm",
        call.x(0),
        call.x(1),
        call.optional(2),
        alpha=call.float("alpha", 1.0),
        beta=call.float("beta", 1.0),
        transA=call.int("transA", 0),
        transB=call.int("transB", 0),
    )
    numbers = [call.float(f"activation_{name}", 0.0) for name in ("alpha", "beta", "gamma")]
    return gradients_through(call, b, [_activated(call, b, product, numbers)])


@vjp(f"{_DOMAIN}::FusedConv")
def fused_conv(call: Call, b: Builder) -> Gradients:
    """An activation of Conv, to which another tensor may be added first."""
    names = ("group", "pads", "strides", "dilations", "kernel_shape", "auto_pad")
    kept: dict[str, Any] = {
        name: call.node.attributes[name] for name in names if name in call.node.attributes
    }
    product = b.op("Conv", call.x(0), call.x(1), call.optional(2), **kept)
    numbers = call.node.attributes.get("activation_params")
    given = [] if numbers is None else list(numbers.as_floats())
    total = _with(b, product, call.optional(3))
    return gradients_through(call, b, [_activated(call, b, total, given)])


@vjp(f"{_DOMAIN}::SkipLayerNormalization")
def skip_layer_normalization(call: Call, b: Builder) -> Gradients:
    """LayerNormalization of the sum of the inputs, which is the fourth output."""
    total = _with(b, b.add(call.x(0), call.x(1)), call.optional(4))
    epsilon = call.float("epsilon", 1e-12)
    normalized, mean, inverse = b.nodes(
        "LayerNormalization", [total, call.x(2), call.optional(3)], 3, axis=-1, epsilon=epsilon
    )
    return gradients_through(call, b, [normalized, mean, inverse, total])


@vjp("SimplifiedLayerNormalization", f"{_DOMAIN}::SkipSimplifiedLayerNormalization")
def simplified_layer_normalization(call: Call, b: Builder) -> Gradients:
    """X scale / sqrt(mean(x^2) + epsilon), of a sum where there is one to skip to."""
    x, scale, axis, epsilon = call.x(0), call.x(1), call.int("axis", -1), 1e-5
    skips = bool(call.node.domain)
    if skips:
        scale, axis, epsilon = call.x(2), -1, 1e-12
        x = _with(b, b.add(x, call.x(1)), call.optional(3))
    axes = b.ints(*range(axis % rank_of(x), rank_of(x)))
    squares = b.op("ReduceMean", b.mul(x, x), axes)
    guarded = b.add(squares, b.number(call.float("epsilon", epsilon), x))
    inverse = b.op("Reciprocal", b.op("Sqrt", guarded))
    normalized = b.mul(b.mul(x, inverse), scale)
    outputs = [normalized, None, inverse, x] if skips else [normalized, inverse]
    return gradients_through(call, b, outputs)


def _with(b: Builder, x: ir.Value, more: ir.Value | None) -> ir.Value:
    return x if more is None else b.add(x, more)


def _turned(b: Builder, matrix: ir.Value) -> ir.Value:
    order = list(range(rank_of(matrix)))
    return b.transpose(matrix, [*order[:-2], order[-1], order[-2]])


def _activated(call: Call, b: Builder, x: ir.Value, numbers: list[float]) -> ir.Value:
    activation = call.string("activation", "")
    if activation in ("", "Relu", "Sigmoid", "Tanh"):
        return b.op(activation, x) if activation else x
    if activation == "LeakyRelu":
        return b.op("LeakyRelu", x, alpha=numbers[0])
    if activation == "HardSigmoid":
        return b.op("HardSigmoid", x, alpha=numbers[0], beta=numbers[1])
    if activation == "Clip":
        return b.op("Clip", x, b.number(numbers[0], x), b.number(numbers[1], x))
    raise call.refusal(f"its activation {activation} has no rule")
