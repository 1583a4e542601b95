"""Functions of unrounded products in integers: slopes below and above 0, lines between knots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Literal

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.passes.simplify.infer_shapes import InferShapes
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session, version

Target = Literal["standard", "integer"]

_INT32_BIAS = "b = DequantizeLinear <axis = 0> (bq, sb)"
_REAL_BIAS = "b = Identity (br)"
_CONV = "c = Conv (x, wf, b)"
_LAYERS = {
    "Conv": ("[1,3,40,40]", "[4,3,1,1]", 0, f"{_INT32_BIAS} {_CONV}"),
    "Conv, real bias": ("[1,3,40,40]", "[4,3,1,1]", 0, f"{_REAL_BIAS} {_CONV}"),
    "MatMul": ("[1600,3]", "[3,4]", 1, "c = MatMul (x, wf)"),
    "Gemm, real bias": ("[1600,3]", "[3,4]", 1, f"{_REAL_BIAS} c = Gemm (x, wf, b)"),
}
_FUNCTIONS = {
    "HardSwish": "r = HardSwish (c)",
    "SiLU": "g = Sigmoid (c) r = Mul (g, c)",
    "Gelu": "r = Gelu (c)",
    "Mish": "r = Mish (c)",
    "Tanh": "r = Tanh (c)",
    "Elu": "r = Elu (c)",
    "HardSwish, spelled out": "a = Add (c, three) l = Clip (a, zero, six) m = Mul (c, l) "
    "r = Div (m, six)",
    "Square": "r = Mul (c, c)",
}
_SLOPES = {
    "LeakyRelu": "r = LeakyRelu <alpha = 0.13> (c)",
    "PRelu": "r = PRelu (c, slope)",
    "Abs": "r = Abs (c)",
    "negative LeakyRelu": "n = Neg (c) r = LeakyRelu (n)",
}


def _text(layer: str, function: str, tail: str = "y = QuantizeLinear (r, sy, zy)") -> str:
    data, weights, axis, body = _LAYERS[layer]
    return f"""
    g (uint8{data} q) => (uint8[] y)
    <float sx = {{0.0311}}, uint8 zx = {{100}}, float sy = {{0.0431}}, uint8 zy = {{60}},
     int8{weights} w = {{90, -30, 41, 64, -25, 76, -83, 97, -88, 55, 120, 13}},
     float[4] sw = {{0.0111, 0.0217, 0.0152, 0.0083}}, int32[4] bq = {{700, -300, 40, -2000}},
     float[4] sb = {{0.00034521, 0.00067487, 0.00047272, 0.00025813}},
     float[4] br = {{0.2417, -0.2025, 0.0189, -0.5163}}, float slope = {{0.21}},
     float three = {{3.0}}, float zero = {{0.0}}, float six = {{6.0}}>
    {{
      x = DequantizeLinear (q, sx, zx)
      wf = DequantizeLinear <axis = {axis}> (w, sw)
      {body} {function} {tail}
    }}"""


def _folded(
    text: str, target: Target, parse: Callable[..., ir.Model]
) -> tuple[ir.Model, PassResult]:
    model = parse(text)
    InferShapes().run(model)
    result = FoldQdq(target).run(model)
    return result.model, result


def _check_codes(text: str, folded: ir.Model, parse: Callable[..., ir.Model]) -> None:
    """At most one code apart, and that no more often than the contract allows."""
    numbers = np.random.default_rng(1)
    for config in (REFERENCE, DEPLOYMENT):
        wrong = total = 0
        before, after = Session(parse(text), REFERENCE), Session(folded, config)
        for _ in range(4):
            shape = next(each.shape for each in before.inputs)
            assert shape is not None
            feed = {"q": numbers.integers(0, 256, [int(str(n)) for n in shape]).astype(np.uint8)}
            for name, codes in before.run(feed).items():
                apart = np.abs(codes.astype(int) - after.run(feed)[name].astype(int))
                assert np.max(apart) <= 1
                wrong, total = wrong + int(np.sum(apart)), total + apart.size
        assert wrong <= 1e-3 * total


@pytest.mark.parametrize("target", ["standard", "integer"])
@pytest.mark.parametrize("layer", _LAYERS)
@pytest.mark.parametrize("function", [*_FUNCTIONS, *_SLOPES])
def test_functions_of_products_stay_integers(
    function: str, layer: str, target: Target, parse: Callable[..., ir.Model]
) -> None:
    text = _text(layer, {**_FUNCTIONS, **_SLOPES}[function])
    folded, result = _folded(text, target, parse)
    census = Counter(node.op_type for node in folded.graph)
    assert not census.keys() & {"QuantizeLinear", "DequantizeLinear", "Conv", "MatMul", "Div"}
    rule = "fold-slopes" if function in _SLOPES else "fold-curve"
    assert (result.rules["fold-linear"], result.rules[rule]) == (1, 1)
    assert not result.remarks
    _check_codes(text, folded, parse)


@pytest.mark.parametrize("target", ["standard", "integer"])
def test_a_slope_a_channel(target: Target, parse: Callable[..., ir.Model]) -> None:
    text = _text("Conv, real bias", "r = PRelu (c, slopes)").replace(
        "float slope =", "float[4,1,1] slopes = {0.1, -0.2, 0.3, 0.05}, float slope ="
    )
    folded, result = _folded(text, target, parse)
    assert result.rules["fold-slopes"] == 1
    _check_codes(text, folded, parse)


@pytest.mark.parametrize("target", ["standard", "integer"])
def test_a_function_quantized_in_two_ways(target: Target, parse: Callable[..., ir.Model]) -> None:
    tail = "y = QuantizeLinear (r, sy, zy) v = QuantizeLinear (r, sx, zx)"
    text = _text("Conv", _FUNCTIONS["HardSwish"], tail)
    text = text.replace("(uint8[] y)", "(uint8[] y, uint8[] v)")
    folded, result = _folded(text, target, parse)
    assert result.rules["fold-curve"] == 2
    assert "HardSwish" not in {node.op_type for node in folded.graph}
    _check_codes(text, folded, parse)


@pytest.mark.parametrize("target", ["standard", "integer"])
@pytest.mark.parametrize(
    ("layer", "tail"),
    [
        ("Conv, real bias", "y = QuantizeLinear (c, sy, zy) v = QuantizeLinear (c, sx, zx)"),
        ("Gemm, real bias", "y = QuantizeLinear (c, sy, zy) v = QuantizeLinear (c, sx, zx)"),
        ("Conv, real bias", "p = Add (c, c) y = QuantizeLinear (p, sy, zy) "
         "v = QuantizeLinear (c, sx, zx)"),
        ("Conv, real bias", "i = Identity (c) n = ReduceSum <noop_with_empty_axes = 1> (i) "
         "d = Dropout (n) y = QuantizeLinear (d, sy, zy) h = HardSwish (d) "
         "v = QuantizeLinear (h, sx, zx)"),
        ("Gemm, real bias", "p = Add (c, three) n = Mul (p, six) y = QuantizeLinear (n, sy, zy) "
         "v = QuantizeLinear (c, sx, zx)"),
    ],
)  # fmt: skip
def test_a_bias_between_codes_reaches_all_that_rounds(
    layer: str, tail: str, target: Target, parse: Callable[..., ir.Model]
) -> None:
    if "noop_with_empty_axes" in tail and version().startswith("1.23."):
        pytest.skip("onnxruntime 1.23 runs no reduction over no axes, float ones included")
    text = _text(layer, "", tail).replace("(uint8[] y)", "(uint8[] y, uint8[] v)")
    folded, _ = _folded(text, target, parse)
    census = Counter(node.op_type for node in folded.graph)
    assert not census.keys() & {"QuantizeLinear", "DequantizeLinear"}
    assert census["ConvInteger"] + census["MatMulInteger"] == 1
    _check_codes(text, folded, parse)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("r = Floor (c)", "lines between knots are too far off"),
        ("r = Log (c)", "it is not a number for some codes of 'c'"),
    ],
)
def test_what_lines_cannot_follow_stays_float(
    function: str, reason: str, parse: Callable[..., ir.Model]
) -> None:
    folded, result = _folded(_text("Conv", function), "standard", parse)
    assert any(reason in remark.reason for remark in result.remarks)
    assert {"DequantizeLinear", "QuantizeLinear"} <= {node.op_type for node in folded.graph}


def test_slopes_as_they_are_written(parse: Callable[..., ir.Model]) -> None:
    text = """g (uint8[1,1,1,2] q) => (uint8[1,1,1,2] y)
    <float s = {0.5}, uint8 z = {100}, int8[1,1,1,1] w = {1}, float sy = {0.125}, uint8 zy = {0}>
    {
      x = DequantizeLinear (q, s, z)
      wf = DequantizeLinear (w, s)
      c = Conv (x, wf)
      r = LeakyRelu <alpha = -0.5> (c)
      y = QuantizeLinear (r, sy, zy)
    }"""
    folded, result = _folded(text, "integer", parse)
    assert result.rules["fold-slopes"] == 1
    assert [node.op_type for node in folded.graph] == [
        "ConvInteger", "Min", "Max", "Cast", "Mul", "Cast", "Mul", "Add", "Add", "Cast",
        "BitShift", "Cast", "BitwiseAnd", "Add", "Add", "Cast", "BitShift", "Clip", "Cast",
    ]  # fmt: skip
    found = Session(folded).run({"q": np.array([[[[90, 111]]]], np.uint8)})["y"]
    assert found.tolist() == [[[[10, 22]]]]  # -2.5 / -2 and 2.75, in eighths


_HALVES = """
g (uint8[256,1] q) => (float[256,4] c, uint8[256,4] y)
<float sx = {0.03125}, uint8 zx = {128}, int8[1,4] w = {64, -64, 96, 33},
 float sw = {0.0078125}, float sy = {0.03125}, uint8 zy = {30}, float zero = {0.0},
 float six = {1.03125}, float low = {-0.265625}>
{
  x = DequantizeLinear (q, sx, zx)
  wf = DequantizeLinear (w, sw)
  c = MatMul (x, wf)
  BODY
  y = QuantizeLinear (r, sy, zy)
}"""


@pytest.mark.parametrize("target", ["standard", "integer"])
@pytest.mark.parametrize(
    "body",
    [
        "r = Clip (c, zero, six)",
        "r = Clip (c, low, six)",
        "r = Relu (c)",
        "a = LeakyRelu <alpha = 0.25> (c) r = Min (a, six)",
        "a = Abs (c) r = Max (a, six)",
    ],
)
def test_halves_within_limits_go_to_the_even_code(
    body: str, target: Target, parse: Callable[..., ir.Model]
) -> None:
    """What another reader leaves real was a line between knots, which holds no half exactly."""
    text = _HALVES.replace("BODY", body)
    folded, result = _folded(text, target, parse)
    feed = {"q": np.arange(256, dtype=np.uint8).reshape(256, 1)}
    wanted = Session(parse(text), REFERENCE).run(feed)
    for name, got in Session(folded, REFERENCE).run(feed).items():
        np.testing.assert_array_equal(got, wanted[name])
    assert result.rules["fold-slopes"] == 1


@pytest.mark.parametrize("target", ["standard", "integer"])
@pytest.mark.parametrize("layer", ["Conv, real bias", "MatMul"])
@pytest.mark.parametrize(
    "function",
    ["r = Clip (c, zero, six)", "l = LeakyRelu <alpha = 0.2> (c) r = Min (l, three)"],
)
def test_limits_on_products(
    function: str, layer: str, target: Target, parse: Callable[..., ir.Model]
) -> None:
    text = _text(layer, function, "y = QuantizeLinear (r, sy, zy) v = QuantizeLinear (c, sx, zx)")
    text = text.replace("(uint8[] y)", "(uint8[] y, uint8[] v)")
    folded, result = _folded(text, target, parse)
    assert result.rules["fold-slopes"] == 1
    _check_codes(text, folded, parse)


@pytest.mark.parametrize("target", ["standard", "integer"])
def test_a_function_that_jumps_stays_real(target: Target, parse: Callable[..., ir.Model]) -> None:
    """The line of one jump is as steep as float32 allows: no integer holds its slope."""
    text = _text("MatMul", "f = Floor (c) r = Clip (f, zero, six)").replace(
        "six = {6.0}", "six = {1.0}"
    )
    folded, result = _folded(text, target, parse)
    assert (result.rules["fold-curve"], result.rules["fold-linear"]) == (0, 1)
    _check_codes(text, folded, parse)


@pytest.mark.parametrize("target", ["standard", "integer"])
@pytest.mark.parametrize("zero", [30, 101])
@pytest.mark.parametrize(
    "body",
    [
        "r = Elu (c)",
        "r = Celu <alpha = 0.5> (c)",
        "d = Add (c, c) r = HardSwish (d)",
        "a = HardSigmoid <alpha = 0.25, beta = 0.5> (c) r = Mul (a, six)",
        "a = Elu (c) r = Min (a, six)",
        "d = Add (c, c) a = Elu (d) r = Neg (a)",
    ],
)
def test_halves_on_the_straight_side_of_a_curve_go_to_the_even_code(
    body: str, zero: int, target: Target, parse: Callable[..., ir.Model]
) -> None:
    """Where knots are no fractions of codes, no half is exact: up to half of them went wrong."""
    text = _HALVES.replace("BODY", body).replace("uint8 zy = {30}", f"uint8 zy = {{{zero}}}")
    if "HardSigmoid" in body:
        text = text.replace("six = {1.03125}", "six = {4.0}")
    folded, result = _folded(text, target, parse)
    feed = {"q": np.arange(256, dtype=np.uint8).reshape(256, 1)}
    wanted = Session(parse(text), REFERENCE).run(feed)
    for name, got in Session(folded, REFERENCE).run(feed).items():
        np.testing.assert_array_equal(got, wanted[name])
    assert result.rules["fold-curve"] == 1
