"""fuse-layer-norm: both forms of the variance, any axis, and what is not a layer norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult

Parse = Callable[..., ir.Model]

PARAMETERS = "float e = {1e-5}, float two = {2}, float zero = {0}, float one = {1}, "
LAST = (
    "int64[1] a = {-1}, float[4] g = {1,-2,3,0.5}, float[4] b = {0.1,0.2,-0.3,0}, float r = {0.25}"
)
MIDDLE = (
    "int64[1] a = {1}, float[1,3,1] g = {1,-2,3}, float[3,1] b = {0.1,0.2,-0.3}, "
    "float r = {0.33333334}, int64[3] s = {2,1,4}"
)

TAIL = "  n = Mul(q, g)  y = Add(n, b)"
FORMS = {
    "transformer": (
        LAST,
        "m = ReduceMean(x, a)  d = Sub(x, m)  p = Pow(d, two)  v = ReduceMean(p, a)  "
        f"w = Add(v, e)  t = Sqrt(w)  q = Div(d, t){TAIL}",
    ),
    "product_and_reciprocal": (
        LAST,
        "m = ReduceMean(x, a)  d = Sub(x, m)  p = Mul(d, d)  v = ReduceMean(p, a)  "
        f"w = Add(e, v)  t = Sqrt(w)  i = Reciprocal(t)  q = Mul(i, d){TAIL}",
    ),
    "one_over": (
        LAST,
        "m = ReduceMean(x, a)  d = Sub(x, m)  p = Mul(d, d)  v = ReduceMean(p, a)  "
        f"w = Add(e, v)  t = Sqrt(w)  i = Div(one, t)  q = Mul(d, i){TAIL}",
    ),
    "two_moments": (
        LAST,
        "k = ReduceSum(x, a)  m = Mul(k, r)  f = Mul(x, x)  h = ReduceSum(f, a)  c = Mul(h, r)  "
        "o = Mul(m, m)  u = Sub(c, o)  v = Max(zero, u)  w = Add(v, e)  t = Sqrt(w)  "
        "i = Reciprocal(t)  z = Mul(i, g)  d = Sub(x, m)  n = Mul(d, z)  y = Add(n, b)",
    ),
    "middle_axis_without_keepdims": (
        MIDDLE,
        "k = ReduceSum<keepdims = 0>(x, a)  m = Mul(k, r)  f = Mul(x, x)  "
        "h = ReduceSum<keepdims = 0>(f, a)  c = Mul(h, r)  o = Mul(m, m)  u = Sub(c, o)  "
        "v = Max(zero, u)  j = Reshape(v, s)  w = Add(j, e)  t = Sqrt(w)  i = Reciprocal(t)  "
        "z = Mul(i, g)  l = Reshape(m, s)  d = Sub(x, l)  n = Mul(d, z)  y = Add(n, b)",
    ),
    "bare": (
        LAST,
        "m = ReduceMean(x, a)  d = Sub(x, m)  p = Mul(d, d)  v = ReduceMean(p, a)  "
        "w = Add(v, e)  t = Sqrt(w)  y = Div(d, t)",
    ),
}


def _model(parse: Parse, constants: str, body: str, opset: int = 21) -> ir.Model:
    text = f"g (float[2,3,4] x) => (float[2,3,4] y) <{PARAMETERS}{constants}> {{ {body} }}"
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(parse(text, opset=opset))))


def _feed() -> dict[str, Any]:
    rng = np.random.default_rng(4)
    return {"x": rng.normal(1.0, 2.0, size=(2, 3, 4)).astype(np.float32)}


@pytest.mark.parametrize("name", FORMS)
def test_fuses(parse: Parse, rewrite: Callable[..., PassResult], name: str) -> None:
    model = _model(parse, *FORMS[name])
    result = rewrite("fuse-layer-norm,remove-dead-code", model, _feed())
    assert result.rules["fuse-layer-norm"] == 1
    ops = [node.op_type for node in model.graph]
    core = ["LayerNormalization"]
    assert ops == (["Transpose", *core, "Transpose"] if "middle" in name else core)


def test_text(
    parse: Parse,
    rewrite: Callable[..., PassResult],
    assert_text: Callable[[ir.Model, str], None],
) -> None:
    constants = "int64[1] a = {-1}, float[4] g = {1,-2,3,0.5}"
    model = _model(parse, constants, FORMS["bare"][1].replace("y = ", "q = ") + "  y = Mul(q, g)")
    rewrite("fuse-layer-norm,remove-dead-code", model, _feed())
    layer_norm = model.graph.node(0)
    assert layer_norm.attributes["epsilon"].as_float() == pytest.approx(1e-5)
    assert_text(
        model,
        """g (float[2,3,4] x) => (float[2,3,4] y)
        <float[4] layer_norm_scale = {1,-2,3,0.5}, float[4] layer_norm_bias = {0,0,0,0}>
        { y = LayerNormalization<axis = -1, epsilon = 0.00001>
              (x, layer_norm_scale, layer_norm_bias) }""",
    )


BARE = FORMS["bare"][1]
REFUSED = {
    "another_axis_for_the_variance": (
        f"{LAST}, int64[1] c = {{1}}",
        BARE.replace("v = ReduceMean(p, a)", "v = ReduceMean(p, c)"),
    ),
    "not_the_mean": (LAST, BARE.replace("m = ReduceMean", "m = ReduceMax")),
    "another_size": (
        LAST,
        FORMS["two_moments"][1].replace("c = Mul(h, r)", "c = Mul(h, two)"),
    ),
    "cubes": (
        f"{LAST}, float three = {{3}}",
        FORMS["transformer"][1].replace("two", "three"),
    ),
    "epsilon_that_varies": (
        LAST,
        BARE.replace("w = Add(v, e)", "w = Add(v, k)").replace("m =", "k = ReduceMax(x, a)  m ="),
    ),
    "inverted": (LAST, BARE.replace("Div(d, t)", "Div(t, d)")),
    "mean_of_something_else": (
        LAST,
        BARE.replace("m = ReduceMean(x, a)", "k = Abs(x)  m = ReduceMean(k, a)"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(parse: Parse, apply_pass: Callable[..., PassResult], name: str) -> None:
    assert not apply_pass("fuse-layer-norm", _model(parse, *REFUSED[name])).modified


def test_a_variance_along_another_axis_of_the_same_size(
    parse: Parse, apply_pass: Callable[..., PassResult]
) -> None:
    body = BARE.replace(
        "v = ReduceMean(p, a)", "k = ReduceMean<keepdims = 0>(p, c)  v = Reshape(k, s)"
    )
    text = f"""g (float[2,4,4] x) => (float[2,4,4] y)
        <{PARAMETERS}{LAST}, int64[1] c = {{1}}, int64[3] s = {{2,4,1}}> {{ {body} }}"""
    model = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(parse(text))))
    assert not apply_pass("fuse-layer-norm", model).modified


def test_old_opset_is_told(parse: Parse, apply_pass: Callable[..., PassResult]) -> None:
    body = BARE.replace("(x, a)", "<axes = [-1]>(x)").replace("(p, a)", "<axes = [-1]>(p)")
    result = apply_pass("fuse-layer-norm", _model(parse, LAST, body, opset=13))
    assert not result.modified
    assert "opset 17" in result.remarks[0].reason


def test_a_scale_along_another_axis_stays_behind(
    parse: Parse, rewrite: Callable[..., PassResult]
) -> None:
    constants = f"{LAST}, float[3,1] k = {{1,2,3}}"
    body = BARE.replace("y = ", "q = ") + "  y = Mul(q, k)"
    model = _model(parse, constants, body)
    rewrite("fuse-layer-norm,remove-dead-code", model, _feed())
    assert [node.op_type for node in model.graph] == ["LayerNormalization", "Mul"]
