"""Teacher-forced comparison of regions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.runtime.verify.regions import RegionBudget, RegionSurvey, check_regions

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
_REAL = ir.DataType.FLOAT
_FEED = {"f": np.array([0.4, 1.2, -2.0, 7.0], np.float32)}


def test_what_is_left_as_it_was_is_not_compared(parse: Callable[..., ir.Model]) -> None:
    survey = check_regions(parse(_BEFORE), parse(_BEFORE), [_FEED, _FEED])
    assert survey == RegionSurvey((), 0, 2)


def test_a_difference_is_charged_to_its_region_alone(parse: Callable[..., ir.Model]) -> None:
    wrong = parse(_BEFORE.replace("m = Mul (x, k)", "m = Add (x, k)"))
    (region,) = check_regions(parse(_BEFORE), wrong, [_FEED, _FEED]).results
    assert (region.name, region.op_type, region.elements, region.rate) == ("m", "Add", 8, 1)


def test_a_changed_constant_makes_a_region(parse: Callable[..., ir.Model]) -> None:
    wrong = parse(_BEFORE.replace("k = {3.0}", "k = {3.5}"))
    (region,) = check_regions(parse(_BEFORE), wrong, [_FEED]).results
    assert region.name == "m"
    assert region.mismatches == 4


def test_a_changed_body_or_attribute_makes_a_region(parse: Callable[..., ir.Model]) -> None:
    text = "agraph (float[2,2] f, bool k) => (float[2,2] y) { t = Transpose <perm = [1, 0]> (f)"
    text += " y = If (k) <then_branch = a () => (float[2,2] u) { u = Relu (t) },"
    text += " else_branch = b () => (float[2,2] v) { v = Abs (t) }> }"
    feed = {"f": np.array([[1, -2], [3, 4]], np.float32), "k": np.array(False)}
    for old, new, name in (("[1, 0]", "[0, 1]", "t"), ("Abs (t)", "Neg (t)", "y")):
        results = check_regions(parse(text), parse(text.replace(old, new)), [feed]).results
        assert [each.name for each in results if each.mismatches] == [name]


def test_recoded_codes_are_found_by_their_suffix(parse: Callable[..., ir.Model]) -> None:
    after = """
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
    results = check_regions(parse(_BEFORE), parse(after), [_FEED]).results
    assert {"q_u8", "p_u8"} <= {each.name for each in results}
    assert all(each.mismatches == 0 for each in results)
    off = after.replace("p_u8 = QuantizeLinear (m, s, z)", "p_u8 = QuantizeLinear (m, s, o)")
    off = off.replace("uint8 z = {128}", "uint8 z = {128}, uint8 o = {127}")
    results = check_regions(parse(_BEFORE), parse(off), [_FEED]).results
    assert {each.name for each in results if each.mismatches} == {"p_u8"}


def test_codes_differ_in_steps(parse: Callable[..., ir.Model]) -> None:
    off = parse(_BEFORE.replace("p = QuantizeLinear (m, s, z)", "p = QuantizeLinear (m, s, one)")
                .replace("int8 z = {0}", "int8 z = {0}, int8 one = {2}"))  # fmt: skip
    (region,) = check_regions(parse(_BEFORE), off, [_FEED]).results
    assert region.name == "p"
    assert region.largest == 2
    assert region.quantized


_TIES = """
agraph (uint8[256] a, uint8[256] b) => (uint8[256] y)
<float sa = {0.035}, float sb = {0.05}, uint8 za = {128}, uint8 zb = {120}>
{
  x = DequantizeLinear (a, sa, za)
  w = DequantizeLinear (b, sa, za)
  t = Add (x, w)
  y = QuantizeLinear (t, sb, zb)
}
"""
_SUM = """
agraph (uint8[256] a, uint8[256] b) => (uint8[256] y)
<float sa = {0.035}, float sb = {%s}, uint8 za = {128}, uint8 zb = {%d}>
{ y = com.microsoft.QLinearAdd (a, sa, za, b, sa, za, sb, zb) }
"""


def _codes() -> list[dict[str, np.ndarray]]:
    numbers = np.random.default_rng(0)
    return [{n: numbers.integers(80, 170, 256).astype(np.uint8) for n in "ab"} for _ in range(4)]


def test_codes_half_way_between_are_ties_and_no_mismatches(parse: Callable[..., ir.Model]) -> None:
    (region,) = check_regions(parse(_TIES), parse(_SUM % ("0.05", 120)), _codes()).results
    assert region.mismatches == 0
    assert 0 < region.ties < 0.1 * region.elements
    assert region.largest == 1


@pytest.mark.parametrize(("scale", "zero_point"), [("0.05", 121), ("0.0505", 120)])
def test_a_wrong_sum_is_no_tie(scale: str, zero_point: int, parse: Callable[..., ir.Model]) -> None:
    (region,) = check_regions(parse(_TIES), parse(_SUM % (scale, zero_point)), _codes()).results
    assert region.rate > 0.05


def test_the_budget_is_kept_and_every_region_seen_first(parse: Callable[..., ir.Model]) -> None:
    after = parse(_BEFORE.replace("k = {3.0}", "k = {3.5}").replace("s, z)", "s, z2)", 1)
                  .replace("int8 z = {0}", "int8 z = {0}, int8 z2 = {1}"))  # fmt: skip
    feeds = [_FEED] * 5
    few = check_regions(parse(_BEFORE), after, feeds, budget=RegionBudget(feeds=3, bytes=1))
    assert (few.samples, few.regions) == (3, 2)
    assert [each.elements for each in few.results] == [12, 12]
    none = check_regions(parse(_BEFORE), after, feeds, budget=RegionBudget(seconds=0, bytes=1))
    assert (none.samples, none.regions) == (0, 2)
    assert [each.elements for each in none.results] == [4]


def test_feeds_may_have_different_batch_sizes(parse: Callable[..., ir.Model]) -> None:
    text = _BEFORE.replace("float[4]", "float[N]")
    after = parse(text.replace("Mul (x, k)", "Add (x, k)"))
    survey = check_regions(parse(text), after, [_FEED, {"f": np.ones(7, np.float32)}])
    assert survey.results[0].elements == 11


def test_what_is_quantized_by_all_that_reads_it_is_compared_as_codes(
    parse: Callable[..., ir.Model],
) -> None:
    """Here a Relu of 0.7 is 0.5 already, as codes are its operand now: 1 code either way."""
    before = """
        agraph (float[4] f) => (int8[4] p)
        <float s = {0.5}, int8 z = {0}>
        { r = Relu (f)  p = QuantizeLinear (r, s, z) }
        """
    pair = "q = QuantizeLinear (f, s, z) x = DequantizeLinear (q, s, z)"
    rounded = parse(before.replace("r = Relu (f)", f"{pair} r = Relu (x)"))
    next(each for each in rounded.graph if each.op_type == "Relu").outputs[
        0
    ].dtype = ir.DataType.FLOAT
    survey = check_regions(parse(before), rounded, [_FEED])
    assert [each.name for each in survey.results] == ["p"]
    assert survey.results[0].mismatches == 0


_BRANCHES = """
agraph (float[4] f, bool k) => (int8[4] p)
<float s = {0.5}, int8 z = {0}, int8 one = {1}, float t = {0.25}>
{
  y = If (k) <
    then_branch = a () => (float[4] u) {
      r = Relu (f) q = QuantizeLinear (r, s, z) u = DequantizeLinear (q, s, z) },
    else_branch = b () => (float[4] v) {
      n = Neg (f) w = QuantizeLinear (n, s, z) v = DequantizeLinear (w, s, z) }
  >
  p = QuantizeLinear (y, t, z)
}
"""


def test_codes_inside_a_body_are_compared_where_they_come_out(
    parse: Callable[..., ir.Model],
) -> None:
    """A code off by one inside is two of those it is rounded to outside: it is one that is off."""
    off = parse(_BRANCHES.replace("(r, s, z)", "(r, s, one)"))
    for model in (before := parse(_BRANCHES), off):
        next(node for node in model.graph if node.op_type == "If").outputs[
            0
        ].dtype = ir.DataType.FLOAT
    survey = check_regions(before, off, [_FEED | {"k": np.array(True)}])
    (region,) = survey.results
    assert (region.name, region.quantized) == ("y", True)
    assert (region.mismatches, region.largest) == (4, 1.0)


def test_what_is_rounded_behind_a_choice_is_compared_as_codes(
    parse: Callable[..., ir.Model],
) -> None:
    """The larger of two is rounded before it is chosen: what is chosen differs, not its code."""
    before = """
        agraph (float[4] f, float[4] g) => (int8[2,2] p)
        <float s = {0.5}, int8 z = {0}, int64[2] sizes = {2, 2}>
        { m = Max (f, g)  r = Reshape (m, sizes)  p = QuantizeLinear (r, s, z) }
        """
    pair = "q = QuantizeLinear (f, s, z) x = DequantizeLinear (q, s, z)"
    rounded = parse(before.replace("m = Max (f", f"{pair} m = Max (x"))
    for node in rounded.graph:
        node.outputs[0].dtype = ir.DataType.INT8 if node.op_type == "QuantizeLinear" else _REAL
    survey = check_regions(parse(before), rounded, [_FEED | {"g": np.zeros(4, np.float32)}])
    assert [(each.name, each.mismatches) for each in survey.results] == [("p", 0)]
