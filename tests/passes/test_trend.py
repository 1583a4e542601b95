from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from onnxfold.passes.trend import Trend, trend_of

Parse = Callable[..., ir.Model]

CONSTANTS = (
    "float half = {0.5}, float one = {1}, float two = {2}, float three = {3}, float six = {6}, "
    "float zero = {0}, float minus = {-2}, float tenth = {0.1}, float k = {0.7978845}, "
    "float c = {0.044715}, float root = {0.70710678}, float near = {3.0001}, "
    "float middle = {3.0002}, float nearer = {3.0003}, float mill = {1e6}, "
    "float q = {1.702}, float[3,1] rising = {1, 2, 3}, float[3,1] mixed = {1, -2, 3}"
)

RISING = {
    "relu of a positive multiple": "a = Mul(x, rising)  y = Relu(a)",
    "two sign changes": "a = Neg(x)  b = Mul(minus, a)  y = Tanh(b)",
    "subtracting what falls": "a = Sigmoid(x)  b = Div(x, minus)  y = Sub(a, b)",
    "max of rising": "a = Mul(x, tenth)  y = Max(a, x)",
    "clip": "y = Clip(x, zero, six)",
    "leaky": "y = LeakyRelu<alpha = 0.3>(x)",
    "per-channel slope": "y = PRelu(x, rising)",
    "cube": "y = Pow(x, three)",
}
FALLING = {
    "neg": "y = Neg(x)",
    "one minus": "a = Sigmoid(x)  y = Sub(one, a)",
    "by a negative": "y = Div(x, minus)",
    "sigmoid of minus x, written out": "a = Exp(x)  b = Add(a, one)  y = Reciprocal(b)",
}
VALLEY = {
    "erf gelu": "a = Mul(x, root)  b = Erf(a)  d = Add(b, one)  e = Mul(x, d)  y = Mul(e, half)",
    "tanh gelu": (
        "a = Mul(x, x)  b = Mul(a, x)  d = Mul(c, b)  e = Add(x, d)  f = Mul(k, e)  g = Tanh(f)"
        "h = Add(g, one)  i = Mul(h, half)  y = Mul(i, x)"
    ),
    "tanh gelu by Pow": (
        "b = Pow(x, three)  d = Mul(c, b)  e = Add(x, d)  f = Mul(k, e)  g = Tanh(f)"
        "h = Add(g, one)  i = Mul(h, half)  y = Mul(i, x)"
    ),
    "Gelu": "y = Gelu(x)",
    "Gelu tanh": 'y = Gelu<approximate = "tanh">(x)',
    "HardSwish": "y = HardSwish(x)",
    "hard swish written out": (
        "a = Add(x, three)  b = Clip(a, zero, six)  d = Mul(x, b)  y = Div(d, six)"
    ),
    "Mish": "y = Mish(x)",
    "mish written out": "a = Softplus(x)  b = Tanh(a)  y = Mul(b, x)",
    "silu": "a = Sigmoid(x)  y = Mul(a, x)",
    "silu by exp": "a = Neg(x)  b = Exp(a)  d = Add(b, one)  y = Div(x, d)",
    "quick gelu": "a = Mul(q, x)  b = Sigmoid(a)  y = Mul(x, b)",
    "gelu of a shifted multiple": "a = Mul(x, minus)  b = Add(a, three)  y = Gelu(b)",
    "abs": "y = Abs(x)",
    "leaky relu of the wrong sign": "y = LeakyRelu<alpha = -0.3>(x)",
    "square": "y = Mul(x, x)",
}
UNKNOWN = {
    "peak": "a = Abs(x)  y = Neg(a)",
    "minus gelu": "a = Gelu(x)  y = Neg(a)",
    "two valleys": "a = Mul(x, x)  b = Sub(a, three)  y = Abs(b)",
    "overflow": "a = Exp(x)  b = Add(a, one)  y = Log(b)",
    "kinks closer than samples, which see a constant": (
        "a = Clip(x, near, nearer)  b = Sub(a, middle)  d = Abs(b)  y = Mul(d, mill)"
    ),
    "steep": "a = Mul(x, mill)  b = Tanh(a)  y = Mul(b, x)",
    "signs that differ between channels": "y = Mul(x, mixed)",
    "valley that differs between channels": "a = Mul(x, rising)  y = Gelu(a)",
    "pole": "y = Reciprocal(x)",
    "undefined below zero": "a = Sqrt(x)  y = Mul(a, x)",
}


def trend(parse: Parse, operators: str) -> Trend | None:
    model = parse(f"g (float[3,4] x) => (float[3,4] y) <{CONSTANTS}> {{ {operators} }}")
    return trend_of(list(model.graph), model.graph.inputs[0])


@pytest.mark.parametrize("name", RISING)
def test_rising(parse: Parse, name: str) -> None:
    assert trend(parse, RISING[name]) is Trend.RISING


@pytest.mark.parametrize("name", FALLING)
def test_falling(parse: Parse, name: str) -> None:
    assert trend(parse, FALLING[name]) is Trend.FALLING


@pytest.mark.parametrize("name", VALLEY)
def test_valley(parse: Parse, name: str) -> None:
    assert trend(parse, VALLEY[name]) is Trend.VALLEY


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown(parse: Parse, name: str) -> None:
    assert trend(parse, UNKNOWN[name]) is None
