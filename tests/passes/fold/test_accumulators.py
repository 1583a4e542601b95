"""Products read by several: one int32 accumulation, rounded for each reader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.passes.simplify.infer_shapes import InferShapes

_CONV = """
    agraph (uint8[1,2,4,4] q) => (uint8[1,3,4,4] a, int8[1,3,4,4] b, float[1,3,4,4] c)
<float sx = {0.031}, uint8 zx = {100}, float s1 = {0.07}, uint8 z1 = {120}, float s2 = {0.11},
 int8 z2 = {-9}, float[3] sw = {0.01, 0.02, 0.015}, int8[3,2,1,1] w = {1, 2, 3, 4, -5, -6}>
{
  x = DequantizeLinear (q, sx, zx)
  wf = DequantizeLinear <axis = 0> (w, sw)
  c = Conv (x, wf)
  a = QuantizeLinear (c, s1, z1)
  b = QuantizeLinear (c, s2, z2)
}
"""

_MATMUL = """
    agraph (uint8[3,4] q) => (uint8[3,2] a, uint8[3,2] b)
<float sx = {0.031}, uint8 zx = {100}, float s1 = {0.07}, uint8 z1 = {120}, float s2 = {0.11},
 uint8 z2 = {9}, float[2] sw = {0.01, 0.02}, int8[4,2] w = {1, 2, 3, 4, -5, -6, 7, 8},
 int32[2] bq = {10, -20}, float[2] sb = {0.00031, 0.00062}>
{
  x = DequantizeLinear (q, sx, zx)
  wf = DequantizeLinear <axis = 1> (w, sw)
  bf = DequantizeLinear <axis = 0> (bq, sb)
  m = MatMul (x, wf)
  c = Add (m, bf)
  a = QuantizeLinear (c, s1, z1)
  b = QuantizeLinear (c, s2, z2)
}
"""


@pytest.mark.parametrize("target", ["standard", "integer"])
@pytest.mark.parametrize("text", [_CONV, _MATMUL], ids=["conv", "matmul"])
def test_readers_share_one_accumulation(
    text: str,
    target: Literal["standard", "integer"],
    parse: Callable[..., ir.Model],
    evaluate: Callable[..., dict[str, Any]],
) -> None:
    model = parse(text)
    InferShapes().run(model)
    source = model.graph.inputs[0]
    assert source.shape is not None
    shape = source.shape.numpy()
    feed = {"q": np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)}
    want = evaluate(model, feed)
    assert FoldQdq(target=target).run(model).modified
    ops = [node.op_type for node in model.graph]
    assert ops.count("ConvInteger") + ops.count("MatMulInteger") == 1
    assert ops.count("BitShift") == 2, "one rescaling a reader"
    assert "QuantizeLinear" not in ops
    assert ops.count("DequantizeLinear") == ("c" in want), "for who reads real numbers"
    got = evaluate(model, feed)
    for name in want:
        if want[name].dtype == np.float32:
            np.testing.assert_allclose(got[name], want[name], rtol=1e-6, atol=1e-6)
        else:
            np.testing.assert_array_equal(got[name], want[name])


@pytest.mark.parametrize("target", ["standard", "integer"])
def test_bias_between_codes_is_added_to_real_numbers(
    target: Literal["standard", "integer"],
    parse: Callable[..., ir.Model],
    evaluate: Callable[..., dict[str, Any]],
) -> None:
    text = _MATMUL.replace("int32[2] bq = {10, -20}", "float[2] bf = {0.1, 0.0003}")
    text = text.replace("  bf = DequantizeLinear <axis = 0> (bq, sb)\n", "")
    text = text.replace("float[2] sb = {0.00031, 0.00062}", "float sb = {1.0}")
    text = text.replace("uint8[3,2] a, uint8[3,2] b)", "float[3,2] c)")
    text = text.replace("  a = QuantizeLinear (c, s1, z1)\n  b = QuantizeLinear (c, s2, z2)\n", "")
    model = parse(text)
    feed = {"q": np.random.default_rng(0).integers(0, 256, (3, 4)).astype(np.uint8)}
    want = evaluate(model, feed)["c"]
    FoldQdq(target=target).run(model)
    ops = [node.op_type for node in model.graph]
    assert ops == ["MatMulInteger", "DequantizeLinear", "Add"]
    np.testing.assert_allclose(evaluate(model, feed)["c"], want, rtol=1e-6, atol=1e-6)


_RESIDUAL = """
    agraph (uint8[1,3,4,4] q) => (uint8[1,3,4,4] y)
<float sx = {0.031}, uint8 zx = {100}, float sy = {0.07}, uint8 zy = {120},
 float[3] sw = {0.01, 0.02, 0.015}, int8[3,3,1,1] w = {1, 20, 30, 4, -50, -6, 70, 8, -9}>
{
  x = DequantizeLinear (q, sx, zx)
  wf = DequantizeLinear <axis = 0> (w, sw)
  c = Conv (x, wf)
  a = Add (x, c)
  y = QuantizeLinear (a, sy, zy)
}
"""


@pytest.mark.parametrize("target", ["standard", "integer"])
def test_unrounded_product_is_a_term_of_a_sum(
    target: Literal["standard", "integer"],
    parse: Callable[..., ir.Model],
    evaluate: Callable[..., dict[str, Any]],
) -> None:
    model = parse(_RESIDUAL)
    InferShapes().run(model)
    feed = {"q": np.random.default_rng(0).integers(0, 256, (1, 3, 4, 4)).astype(np.uint8)}
    want = evaluate(model, feed)["y"]
    FoldQdq(target=target).run(model)
    ops = {node.op_type for node in model.graph}
    assert ops.isdisjoint({"DequantizeLinear", "QuantizeLinear", "Conv"})
    np.testing.assert_array_equal(evaluate(model, feed)["y"], want)


_COARSE = """
    agraph (uint8[1,2,30,30] q) => (uint8[1,2,30,30] y)
<float sx = {0.0311}, uint8 zx = {100}, float sy = {0.0431}, uint8 zy = {120},
 float sw = {0.0217}, int8[2,1,1,1] w = {100, -90}, float[2] b = {0.10033, -0.20034}>
{
  x = DequantizeLinear (q, sx, zx)
  wf = DequantizeLinear (w, sw)
  c = Conv <group = 2> (x, wf, b)
  y = QuantizeLinear (c, sy, zy)
}
"""


@pytest.mark.parametrize("target", ["ort", "standard", "qdq", "integer"])
def test_bias_between_coarse_codes_is_not_rounded(
    target: Literal["ort", "standard", "qdq", "integer"],
    parse: Callable[..., ir.Model],
    evaluate: Callable[..., dict[str, Any]],
) -> None:
    model = parse(_COARSE)
    InferShapes().run(model)
    codes = np.tile(np.arange(225, dtype=np.uint8), 8).reshape(1, 2, 30, 30)
    want = evaluate(model, {"q": codes})["y"]
    result = FoldQdq(target=target).run(model)
    assert "QLinearConv" not in {node.op_type for node in model.graph}
    np.testing.assert_array_equal(evaluate(model, {"q": codes})["y"], want)
    assert (target == "ort") == any("bias" in each.reason for each in result.remarks)


def test_coarse_bias_is_an_addition_in_canonical_form(parse: Callable[..., ir.Model]) -> None:
    model = parse(_COARSE)
    InferShapes().run(model)
    FoldQdq(target="qdq").run(model)
    ops = [node.op_type for node in model.graph]
    assert ops[-3:] == ["Conv", "Add", "QuantizeLinear"], "onnxruntime rounds a Conv's own bias"
