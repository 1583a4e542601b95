"""What add-gradient asks for, and what it says where it cannot."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from onnxfold.passes.errors import UsageError
from onnxfold.passes.grad.add_gradient import AddGradient
from onnxfold.passes.registry import parse_passes

Parse = Callable[..., ir.Model]

MODEL = """g (float[N,3] x, int64[N] ids, float[N,2] target) => (float[N,2] y, float loss)
<float[3,4] w = {0,0,0,0,0,0,0,0,0,0,0,0}, float[4] bias = {0,0,0,0},
 float[4,2] u = {0,0,0,0,0,0,0,0}, float two = {2.0}, int64[1] axes = {1}> {
    h = MatMul(x, w)
    s = Add(h, bias)
    scaled = Mul(s, two)
    y = MatMul(scaled, u)
    d = Sub(y, target)
    q = Mul(d, d)
    loss = ReduceMean<keepdims = 0>(q)
}"""


def apply(text: str, model: ir.Model) -> None:
    for each in parse_passes(text):
        each.run(model)


def added(model: ir.Model) -> list[str]:
    return [output.name or "" for output in model.graph.outputs[2:]]


@pytest.mark.parametrize(
    ("wrt", "expected"),
    [
        ("", ["grad_w", "grad_bias", "grad_u"]),
        ("wrt=weights", ["grad_w", "grad_bias", "grad_u"]),
        ("wrt=inputs", ["grad_x", "grad_target"]),
        ("wrt=w,x", ["grad_w", "grad_x"]),
        ("wrt=[uw],u", ["grad_w", "grad_u"]),
        ("wrt=bi.*,inputs", ["grad_bias", "grad_x", "grad_target"]),
        ("of=y wrt=s", ["grad_s"]),
        ("of=h wrt=two", ["grad_two"]),
    ],
)
def test_what_is_asked_for(parse: Parse, wrt: str, expected: list[str]) -> None:
    model = parse(MODEL)
    apply(f"add-gradient{{{wrt}}}" if wrt else "add-gradient", model)
    assert added(model) == expected
    node = model.graph[-1]
    assert node.op_type == "Gradient"
    names = [value.name for value in node.inputs if value is not None]
    assert names == list(node.attributes["xs"].as_strings())
    for value, gradient in zip(node.inputs, node.outputs, strict=True):
        assert value is not None
        assert (gradient.dtype, gradient.shape) == (value.dtype, value.shape)


def test_data_of_losses_are_no_inputs(parse: Parse) -> None:
    model = parse("g (float[N,3] x) => (float[N,3] y) { y = Tanh(x) }")
    apply("inject-loss{loss=mse},add-gradient{wrt=inputs}", model)
    assert [name for name in added(model) if name.startswith("grad_")] == ["grad_x"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{of=los}", "no tensor 'los' to differentiate.*'loss'.*inject a loss first"),
        ("{of=x}", "no tensor 'x' to differentiate"),
        ("{wrt=ww}", "no real tensor matches 'ww'.*'w'"),
        ("{wrt=ids}", "no real tensor matches 'ids'"),
        ("{wrt=(w}", "is no regular expression"),
    ],
)
def test_refusals(parse: Parse, options: str, message: str) -> None:
    model = parse(MODEL)
    with pytest.raises(UsageError, match=message):
        apply(f"add-gradient{options}", model)
    assert added(model) == []


def test_weights_of_fused_operators(parse: Parse) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
    g (float[N,2] x) => (float[N,2] y, float loss)
    <float[2,2] w = {1, 2, 3, 4}, float[2] b = {5, 6}, float[2] s = {1, 2}, float[2] t = {3, 4}> {
      a = com.microsoft.FusedMatMul (x, w)
      c = com.microsoft.BiasGelu (a, b)
      y = com.microsoft.SkipLayerNormalization (c, x, s, t)
      loss = ReduceMean <keepdims = 0> (y)
    }"""
    model = AddGradient().run(parse(text)).model
    names = [value.name for value in model.graph.outputs]
    assert names == ["y", "loss", "grad_w", "grad_b", "grad_s", "grad_t"]


def test_a_model_without_weights(parse: Parse) -> None:
    model = parse("g (float[N,3] x) => (float[N,3] y) { y = Tanh(x) }")
    with pytest.raises(UsageError, match="weights"):
        apply("add-gradient{of=y}", model)


@pytest.mark.parametrize(
    ("wrt", "message"),
    [("weights", "the model has no float weights"), ("inputs", "the model has no real inputs")],
)
def test_a_model_without_any_says_so(parse: Parse, wrt: str, message: str) -> None:
    model = parse("g (int64[N,3] x) => (float[N,3] y) { y = Cast <to=1> (x) }")
    with pytest.raises(UsageError, match=message):
        apply(f"add-gradient{{of=y wrt={wrt}}}", model)
