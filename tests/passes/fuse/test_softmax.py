"""fuse-softmax: the primitives of a softmax along one axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult

Parse = Callable[..., ir.Model]

KEPT = "m = ReduceMax<axes = [1]>(x)  d = Sub(x, m)  e = Exp(d)  s = ReduceSum(e, a)  y = Div(e, s)"
RESHAPED = (
    "k = ReduceMax<axes = [1], keepdims = 0>(x)  l = Max(k, low)  m = Reshape(l, shape)  "
    "d = Sub(x, m)  e = Exp(d)  t = ReduceSum<keepdims = 0>(e, a)  s = Reshape(t, shape)  "
    "y = Div(e, s)"
)
CONSTANTS = "int64[1] a = {1}, int64[3] shape = {2,1,4}, float low = {0}"


def _model(parse: Parse, body: str, opset: int = 17) -> ir.Model:
    text = f"g (float[2,3,4] x) => (float[2,3,4] y) <{CONSTANTS}> {{ {body} }}"
    model = parse(text, opset=opset)
    infinity = ir.tensor(np.array(-np.inf, np.float32), name="low")
    model.graph.initializers["low"].const_value = infinity
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model)))


def _feed() -> dict[str, Any]:
    return {"x": np.random.default_rng(4).normal(0, 3, size=(2, 3, 4)).astype(np.float32)}


@pytest.mark.parametrize("body", [KEPT, RESHAPED])
def test_fuses(
    parse: Parse,
    rewrite: Callable[..., PassResult],
    assert_text: Callable[[ir.Model, str], None],
    body: str,
) -> None:
    model = _model(parse, body)
    rewrite("fuse-softmax,remove-dead-code", model, _feed())
    assert_text(model, "g (float[2,3,4] x) => (float[2,3,4] y) { y = Softmax<axis = 1>(x) }")


@pytest.mark.parametrize(
    "body",
    [
        KEPT.replace("ReduceMax<axes = [1]>", "ReduceMax<axes = [2]>"),
        KEPT.replace("ReduceMax", "ReduceMin"),
        KEPT.replace("Div(e, s)", "Div(s, e)"),
        KEPT.replace("ReduceSum(e, a)", "ReduceSum(d, a)"),
        KEPT.replace("Sub(x, m)", "Sub(m, x)"),
        KEPT.replace("ReduceMax<axes = [1]>(x)", "ReduceMax(x)"),
    ],
)
def test_refuses(parse: Parse, apply_pass: Callable[..., PassResult], body: str) -> None:
    assert not apply_pass("fuse-softmax", _model(parse, body)).modified


def test_a_finite_floor_is_kept(parse: Parse, apply_pass: Callable[..., PassResult]) -> None:
    model = _model(parse, RESHAPED)
    zero = ir.tensor(np.array(0, np.float32), name="low")
    model.graph.initializers["low"].const_value = zero
    assert not apply_pass("fuse-softmax", model).modified


def test_old_opset_is_told(parse: Parse, apply_pass: Callable[..., PassResult]) -> None:
    body = KEPT.replace("ReduceSum(e, a)", "ReduceSum<axes = [1]>(e)")
    result = apply_pass("fuse-softmax", _model(parse, body, opset=12))
    assert not result.modified
    assert "opset 13" in result.remarks[0].reason
