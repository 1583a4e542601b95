"""A linear regression whose gradients are written out by hand."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

LINEAR = """g (float[N,3] x, float[N,2] labels) => (float[N,2] y, float loss, float[3,2] grad_w,
                                                float[2] grad_b)
<float[3,2] w = {1, -2, 0.5, 0.25, -1, 2}, float[2] b = {0.5, -0.5}, float two = {2},
 int64[1] first = {0}> {
    y = Gemm(x, w, b)
    error = Sub(y, labels)
    square = Mul(error, error)
    loss = ReduceMean<keepdims = 0>(square)
    count = Size(error)
    counted = CastLike(count, error)
    double = Mul(two, error)
    slope = Div(double, counted)
    turned = Transpose(x)
    grad_w = MatMul(turned, slope)
    grad_b = ReduceSum<keepdims = 0>(slope, first)
}"""


@pytest.fixture
def linear(parse: Callable[..., ir.Model]) -> ir.Model:
    """Mean square error of x w + b against labels, with outputs loss, grad_w and grad_b."""
    return parse(LINEAR)
