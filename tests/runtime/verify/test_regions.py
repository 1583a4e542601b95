"""Teacher-forced comparison of regions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxfold.runtime.verify.regions import check_regions

_BEFORE = """
agraph (float[4] f) => (float[4] y)
<float s = {0.5}, int8 z = {0}, float k = {3.0}>
{
  q = QuantizeLinear (f, s, z)
  x = DequantizeLinear (q, s, z)
  m = Mul (x, k)
  p = QuantizeLinear (m, s, z)
  y = DequantizeLinear (p, s, z)
}
"""
_FEED = {"f": np.array([0.4, 1.2, -2.0, 7.0], np.float32)}


def test_equal_models_agree_everywhere(parse: Callable[..., ir.Model]) -> None:
    results = check_regions(parse(_BEFORE), parse(_BEFORE), [_FEED, _FEED])
    assert {each.name for each in results} == {"q", "x", "m", "p", "y"}
    assert all(each.mismatches == 0 and each.elements == 8 for each in results)


def test_a_difference_is_charged_to_its_region_alone(parse: Callable[..., ir.Model]) -> None:
    wrong = parse(_BEFORE.replace("m = Mul (x, k)", "m = Add (x, k)"))
    rates = {each.name: each.rate for each in check_regions(parse(_BEFORE), wrong, [_FEED])}
    assert rates == {"q": 0, "x": 0, "m": 1, "p": 0, "y": 0}


def test_recoded_codes_are_found_by_their_suffix(parse: Callable[..., ir.Model]) -> None:
    after = parse(
        """
        agraph (float[4] f) => (float[4] y)
        <float s = {0.5}, uint8 z = {128}, float k = {3.0}>
        {
          q_u8 = QuantizeLinear (f, s, z)
          x = DequantizeLinear (q_u8, s, z)
          m = Mul (x, k)
          p_u8 = QuantizeLinear (m, s, z)
          y = DequantizeLinear (p_u8, s, z)
        }
        """
    )
    results = {each.name: each for each in check_regions(parse(_BEFORE), after, [_FEED])}
    assert {"q_u8", "p_u8"} <= set(results)
    assert all(each.mismatches == 0 for each in results.values())


def test_codes_differ_in_steps(parse: Callable[..., ir.Model]) -> None:
    off = parse(_BEFORE.replace("p = QuantizeLinear (m, s, z)", "p = QuantizeLinear (m, s, one)")
                .replace("int8 z = {0}", "int8 z = {0}, int8 one = {2}"))  # fmt: skip
    results = {each.name: each for each in check_regions(parse(_BEFORE), off, [_FEED])}
    assert results["p"].largest == 2
    assert results["p"].quantized
    assert results["y"].mismatches == 0
