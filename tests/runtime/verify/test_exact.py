"""The real numbers a region rounds, and which codes are correct roundings of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxfold.runtime.verify.cut import named_values
from onnxfold.runtime.verify.exact import TIE_WIDTH, ExactCodes, ExactRegion

_CONV = """
agraph (uint8[1,2,2,2] q) => (float[1,1,2,2] y)
<float s = {0.05}, uint8 z = {120}, int8[1,2,1,1] w = {3, -2}, float[1] sw = {0.5},
 float t = {0.25}, int8 u = {-100}>
{
  x = DequantizeLinear (q, s, z)
  v = DequantizeLinear <axis = 0> (w, sw)
  c = Conv (x, v)
  r = Relu (c)
  p = QuantizeLinear (r, t, u)
  y = DequantizeLinear (p, t, u)
}
"""


def _region(text: str, parse: Callable[..., ir.Model]) -> ExactRegion:
    return ExactRegion(named_values(parse(text).graph), 21)


def test_numbers_are_counted_in_codes_from_the_zero_point(parse: Callable[..., ir.Model]) -> None:
    codes = np.array([130, 110, 255, 121, 100, 90, 0, 119], np.uint8).reshape(1, 2, 2, 2)
    sums = np.tensordot([3, -2], codes[0].astype(np.float64) - 120, 1)
    scale = float(np.float32(0.05)) * 0.5 / 0.25
    wanted = np.clip(np.maximum(sums * scale, 0), -28, 227)
    for name in ("p", "y"):
        exact = _region(_CONV, parse).codes(name, {"q": codes})
        assert exact is not None
        np.testing.assert_allclose(exact.position[0, 0], wanted, rtol=1e-12)


def test_what_cannot_be_evaluated_excuses_nothing(parse: Callable[..., ir.Model]) -> None:
    codes = {"q": np.zeros((1, 2, 2, 2), np.uint8)}
    assert _region(_CONV, parse).codes("p", codes, most_products=1) is None
    assert _region(_CONV, parse).codes("c", codes) is None, "not rounded"
    assert _region(_CONV, parse).codes("p", {}) is None, "the border is not known"
    per_channel = _CONV.replace("float t = {0.25}", "float[1] t = {0.25}")
    per_channel = per_channel.replace("int8 u = {-100}", "int8[1] u = {-100}")
    assert _region(per_channel, parse).codes("p", codes) is not None
    blocked = per_channel.replace("QuantizeLinear (r", "QuantizeLinear <block_size = 2> (r")
    assert _region(blocked, parse).codes("p", codes) is None


def test_both_codes_must_be_correct_roundings() -> None:
    near = TIE_WIDTH / 2
    exact = ExactCodes(np.array([2.5, 2.5 + near, 2.5 + 3 * near, 2.4, 2.5, 2.5]))
    want, got = np.array([2, 3, 3, 2, 2, 4]), np.array([3, 2, 2, 3, 1, 3])
    assert exact.ties(want, got).tolist() == [True, True, False, False, False, False]


_ABSENT = """
agraph (uint8[4] q) => (int8[4] p)
<float s = {0.5}, uint8 z = {128}>
{
  x = DequantizeLinear (q, s, z)
  p = QuantizeLinear <output_dtype = 3> (x, s)
}
"""


def test_codes_without_zero_point_have_the_type_that_is_asked_for(
    parse: Callable[..., ir.Model],
) -> None:
    codes = np.array([0, 127, 128, 255], np.uint8)
    exact = _region(_ABSENT, parse).codes("p", {"q": codes})
    assert exact is not None
    assert exact.position.tolist() == [-128, -1, 0, 127]


_TWICE = """
agraph (uint8[3] q) => (uint8[3] p)
<float s = {0.4}, uint8 z = {100}, float t = {0.5}, uint8 u = {90}, float v = {0.3}>
{
  x = DequantizeLinear (q, s, z)
  m = QuantizeLinear (x, t, u)
  y = DequantizeLinear (m, t, u)
  p = QuantizeLinear (y, v, u)
}
"""


def test_a_rounding_inside_is_taken_where_it_does_not_tie(parse: Callable[..., ir.Model]) -> None:
    region = _region(_TWICE, parse)
    codes = np.array([101, 98, 107], np.uint8)  # 0.8, -1.6 and 5.6 steps of 0.5
    exact = region.codes("p", {"q": codes})
    assert exact is not None
    np.testing.assert_allclose(exact.position, np.array([1, -2, 6]) * 0.5 / np.float32(0.3))
    tied = np.array([100, 105, 110], np.uint8)  # 5 steps of 0.4 are 4 of 0.5
    assert region.codes("p", {"q": tied}) is not None
    halves = _TWICE.replace("float s = {0.4}", "float s = {0.25}")
    assert _region(halves, parse).codes("p", {"q": codes}) is None, "two truths"


def test_products_of_codes_are_what_integers_give(parse: Callable[..., ir.Model]) -> None:
    """The sums of 4096 products in float64 against int64: the same, to a billionth of a code."""
    numbers = np.random.default_rng(2)
    codes = numbers.integers(0, 256, (1, 4096), dtype=np.uint8)
    weights = numbers.integers(-128, 128, (4096, 2), dtype=np.int8)
    text = """
    agraph (uint8[1,4096] q, float[4096,2] w) => (uint8[1,2] p)
    <float s = {0.013}, uint8 z = {77}, float t = {5.1}>
    {
      x = DequantizeLinear (q, s, z)
      m = MatMul (x, w)
      p = QuantizeLinear (m, t, z)
    }
    """
    step = float(np.float32(0.011))
    exact = _region(text, parse).codes("p", {"q": codes, "w": weights * step})
    assert exact is not None
    sums = (codes.astype(np.int64) - 77) @ weights.astype(np.int64)
    units = float(np.float32(0.013)) * step / float(np.float32(5.1))
    np.testing.assert_allclose(exact.position, sums * units, rtol=1e-12)
