"""Tensors inside bodies, observed: every value they took, against a loop in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from onnxfold.passes.errors import UsageError
from onnxfold.runtime.calibrate.body_taps import body_tensors, expose_bodies
from onnxfold.runtime.calibrate.calibrate import calibrate, collect
from onnxfold.runtime.calibrate.histogram import Histogram
from onnxfold.runtime.session import REFERENCE, Session

Parse = Callable[..., ir.Model]
Feed = dict[str, npt.NDArray[Any]]

LOOP = """
g (float[T,2] xs, float[2] h0, int64 n) => (float[2] h, float[U,2] hs)
<float[2,2] w = {1, 0.5, -0.5, 0.25}, bool yes = {1}>
{
  h, hs = Loop (n, yes, h0) <
    body = step (int64 i, bool go, float[2] s) => (bool on, float[2] t, float[2] out) {
      on = Identity(go)
      x = Gather(xs, i)
      a = MatMul(s, w)
      t = Add(a, x)
      out = Neg(t)
    }>
}
"""
W = np.array([[1, 0.5], [-0.5, 0.25]], np.float32)

GROWING = """
g (float[N] x, int64 n) => (float[M] y)
<bool yes = {1}>
{
  y = Loop (n, yes, x) <body = step (int64 i, bool go, float[K] s) => (bool on, float[L] t) {
    on = Identity(go)
    m = Neg(s)
    t = Concat<axis = 0>(s, m)
  }>
}
"""

NESTED = """
g (float[2] x, bool b, int64 n) => (float[2] z)
<bool yes = {1}>
{
  z = If (b) <
    then_branch = outer_then () => (float[2] p) {
      p = Loop (n, yes, x) <body = step (int64 i, bool go, float[2] s) => (bool on, float[2] t) {
        on = Identity(go)
        two = Constant<value_int = 2>()
        rest = Mod(i, two)
        odd = Cast<to = 9>(rest)
        t = If (odd) <
          then_branch = inner_then () => (float[2] u) { u = Add(s, s) },
          else_branch = inner_else () => (float[2] v) { v = Neg(s) }
        >
      }>
    },
    else_branch = outer_else () => (float[2] q) { q = Neg(x) }
  >
}
"""

SCAN = """
g (float[2] h0, float[T,2] xs) => (float[2] h, float[2,U] ys)
{
  h, ys = Scan<num_scan_inputs = 1, scan_output_axes = [1], body =
    step (float[2] s, float[2] x) => (float[2] t, float[2] y) {
      t = Add(s, x)
      m = Mul(t, x)
      y = Neg(m)
    }>(h0, xs)
}
"""


def _loop_feeds() -> list[Feed]:
    random = np.random.default_rng(0)
    return [
        {
            "xs": random.normal(size=(steps, 2)).astype(np.float32),
            "h0": random.normal(size=2).astype(np.float32),
            "n": np.array(steps),
        }
        for steps in (1, 4, 2, 7, 3)
    ]


def _states(feed: Feed) -> tuple[list[npt.NDArray[Any]], list[npt.NDArray[Any]]]:
    """What "s" and "a" are in each iteration."""
    states: list[npt.NDArray[Any]] = [feed["h0"]]
    products: list[npt.NDArray[Any]] = []
    for x in feed["xs"]:
        products.append(states[-1] @ W)
        states.append(products[-1] + x)
    return states[:-1], products


def test_a_loop_is_observed_in_all_iterations(parse: Parse) -> None:
    ranges = calibrate(parse(LOOP), ["s", "a", "x", "h", "hs"], _loop_feeds())
    assert ranges.notes == ()
    seen = [_states(feed) for feed in _loop_feeds()]
    for index, name in enumerate(("s", "a")):
        values = np.concatenate([each for pair in seen for each in pair[index]])
        assert ranges[name] == pytest.approx((values.min(), values.max()), rel=1e-6)
    x = np.concatenate([feed["xs"] for feed in _loop_feeds()])
    assert ranges["x"] == (x.min(), x.max())


def test_methods_see_every_value(parse: Parse) -> None:
    seen = collect(parse(LOOP), ["x"], _loop_feeds(), method="percentile").observers["x"]
    expected = Histogram()
    for feed in _loop_feeds():
        expected.update(feed["xs"])
    assert isinstance(seen, Histogram)
    assert seen.exponent == expected.exponent
    np.testing.assert_array_equal(seen.counts, expected.counts)


def test_what_a_loop_puts_out_stays_as_it_is(parse: Parse) -> None:
    model, tapped = parse(LOOP), parse(LOOP)
    exposed = expose_bodies(tapped, {"a", "out", "s"})
    assert sorted(exposed.values()) == ["a", "out", "s"]
    onnx.checker.check_model(ir.to_proto(tapped), full_check=True)
    for feed in _loop_feeds():
        before = Session(model, REFERENCE).run(feed)
        after = Session(tapped, REFERENCE).run(feed)
        assert set(after) == {*before, *exposed}
        for name, values in before.items():
            np.testing.assert_array_equal(after[name], values)
        named = {exposed[name]: after[name] for name in exposed}
        np.testing.assert_array_equal(named["out"], before["hs"].ravel())


def test_sizes_may_differ_from_one_iteration_to_the_next(parse: Parse) -> None:
    feed = {"x": np.array([1.0, -3.0], np.float32), "n": np.array(4)}
    observed = collect(parse(GROWING), ["m", "s"], [feed], method="percentile")
    for each in observed.observers.values():
        assert isinstance(each, Histogram)
        assert each.total == 2 + 4 + 8 + 16
    assert dict(observed.ranges()) == {"m": (-3.0, 3.0), "s": (-3.0, 3.0)}


def test_bodies_in_bodies_are_observed_when_they_run(parse: Parse) -> None:
    model = parse(NESTED)
    x = np.array([1.0, -2.0], np.float32)
    feeds = [{"x": x, "b": np.array(b), "n": np.array(n)} for b, n in ((True, 3), (False, 5))]
    # In turn negated and doubled: s is x, -x, -2x.
    found = calibrate(model, ["s", "u", "v", "q", "z"], feeds)
    assert found["s"] == (-2.0, 4.0)
    assert found["u"] == (-2.0, 4.0)
    assert found["v"] == (-4.0, 2.0)
    assert found["q"] == (-1.0, 2.0)
    assert found["z"] == (-4.0, 2.0)


def test_a_branch_that_never_runs_has_no_range_but_a_note(parse: Parse) -> None:
    x = np.array([1.0, -2.0], np.float32)
    found = calibrate(parse(NESTED), ["u", "q"], [{"x": x, "b": np.array(False), "n": np.array(1)}])
    assert dict(found) == {"q": (-1.0, 2.0)}
    assert found.notes == ("tensor 'u' never had a value",)


def test_a_scan_is_observed_and_its_axes_stay(parse: Parse) -> None:
    random = np.random.default_rng(1)
    feed = {"h0": np.zeros(2, np.float32), "xs": random.normal(size=(5, 2)).astype(np.float32)}
    ranges = calibrate(parse(SCAN), ["m", "s", "ys"], [feed])
    totals = np.cumsum(feed["xs"], axis=0)
    products = totals * feed["xs"]
    assert ranges["m"] == pytest.approx((products.min(), products.max()), rel=1e-6)
    assert ranges["s"][1] == pytest.approx(max(0.0, totals[:-1].max()), rel=1e-6)
    assert ranges["ys"] == pytest.approx((-products.max(), -products.min()), rel=1e-6)


def test_a_scan_inside_a_loop_is_observed(parse: Parse) -> None:
    model = parse("""
    g (float[2] x, float[3,2] xs, int64 n) => (float[2] z)
    <bool yes = {1}>
    {
      z = Loop (n, yes, x) <body = step (int64 i, bool go, float[2] s) => (bool on, float[2] t) {
        on = Identity(go)
        t = Scan<num_scan_inputs = 1, body = add (float[2] r, float[2] y) => (float[2] u) {
          d = Neg(y)
          u = Sub(r, d)
        }>(s, xs)
      }>
    }""")
    xs = np.arange(6, dtype=np.float32).reshape(3, 2)
    feed = {"x": np.array([-5.0, 0.0], np.float32), "xs": xs, "n": np.array(2)}
    assert dict(calibrate(model, ["d", "r"], [feed])) == {"d": (-5.0, 0.0), "r": (-5.0, 13.0)}


def test_what_varies_in_size_inside_a_scan_is_left_out_with_a_note(parse: Parse) -> None:
    model = parse("""
    g (float[T,2] xs, bool b) => (float[U,2] ys)
    {
      ys = Scan<num_scan_inputs = 1, body = step (float[2] x) => (float[2] y) {
        y = If (b) <then_branch = yes () => (float[2] p) { p = Neg(x) },
                    else_branch = no () => (float[2] q) { q = Identity(x) }>
      }>(xs)
    }""")
    assert body_tensors(model) == {
        "x": "",
        "y": "",
        "p": "is inside a body that a Scan runs",
        "q": "is inside a body that a Scan runs",
    }
    feed = {"xs": np.ones((3, 2), np.float32), "b": np.array(True)}
    found = calibrate(model, ["p", "y"], [feed])
    assert dict(found) == {"y": (-1.0, -1.0)}
    assert found.notes == ("tensor 'p' is inside a body that a Scan runs: not calibrated",)


def test_two_bodies_with_one_name_are_observed_together_and_bounds_hold_for_both(
    parse: Parse,
) -> None:
    model = parse("""
    g (float[2] x, bool b) => (float[2] z)
    {
      z = If (b) <
        then_branch = yes () => (float[2] p) { m = Add(x, x) t = Tanh(x) p = Mul(m, t) },
        else_branch = no () => (float[2] q) { m = Neg(x) t = Exp(x) q = Mul(m, t) }
      >
    }""")
    feeds = [{"x": np.array([0.0, 2.0], np.float32), "b": np.array(b)} for b in (True, False)]
    ranges = calibrate(model, ["m", "t"], feeds)
    assert ranges["m"] == (-2.0, 4.0)
    assert ranges["t"] == pytest.approx((0.0, np.exp(2.0)), rel=1e-6)


def test_an_unknown_tensor_is_compared_with_those_in_bodies(parse: Parse) -> None:
    with pytest.raises(UsageError, match="no tensor 'outt'; did you mean 'out'"):
        calibrate(parse(LOOP), ["outt"], _loop_feeds())
