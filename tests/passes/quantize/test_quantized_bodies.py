"""insert-qdq inside the bodies of If and Loop: what it writes, and how near to float it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxfold.passes.base import Pass, PassResult
from onnxfold.passes.presets import TIDY, fold_pass
from onnxfold.passes.quantize.insert_qdq import InsertQdq
from onnxfold.passes.quantize.placement import Placement, PlacementOptions, tensors_to_observe
from onnxfold.passes.quantize.ranges import Ranges
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.walk import all_nodes
from onnxfold.runtime.calibrate.calibrate import calibrate

Array = npt.NDArray[Any]
Parse = Callable[..., ir.Model]
Apply = Callable[[Pass | str, ir.Model], PassResult]
AssertText = Callable[[ir.Model, str], None]
Evaluate = Callable[[ir.Model, Mapping[str, Any]], dict[str, Any]]

LOOP = """
g (float[T,1,2] xs, float[1,2] h0, int64 n) => (float[1,2] h)
<float[2,2] w = {127, 0, 0, 63.5}, bool yes = {1}>
{
  h = Loop (n, yes, h0) <body = step (int64 i, bool go, float[1,2] s) => (bool on, float[1,2] t) {
    on = Identity(go)
    x = Gather(xs, i)
    a = MatMul(x, w)
    b = MatMul(s, w)
    c = Add(a, b)
    t = Tanh(c)
  }>
}
"""

BRANCHES = """
g (float[1,2] x, bool b) => (float[1,2] z)
<float[2,2] w = {127, 0, 0, 63.5}>
{
  z = If (b) <
    then_branch = yes () => (float[1,2] p) { m = MatMul(x, w) r = Relu(m) p = MatMul(r, w) },
    else_branch = no () => (float[1,2] q) { q = MatMul(x, w) }
  >
}
"""

NESTED = """
g (float[N,4] x, int64 n, bool b) => (float[N,4] z)
<float[4,4] w = {0.5,-0.25,0.25,0.125, 0.1,0.7,-0.3,0.2, -0.6,0.1,0.4,0.3, 0.2,0.2,-0.5,0.6},
 bool yes = {1}>
{
  h = MatMul(x, w)
  z = If (b) <
    then_branch = outer_then () => (float[N,4] p) {
      p = Loop (n, yes, h) <body = step (int64 i, bool g, float[N,4] s) => (bool on, float[N,4] t) {
        on = Identity(g)
        m = MatMul(s, w)
        none = Constant<value_int = 0>()
        first = Equal(i, none)
        k = If (first) <
          then_branch = inner_then () => (float[N,4] u) { u0 = MatMul(m, w) u = Relu(u0) },
          else_branch = inner_else () => (float[N,4] v) { v = MatMul(h, w) }
        >
        t = Tanh(k)
      }>
    },
    else_branch = outer_else () => (float[N,4] q) { q = MatMul(h, w) }
  >
}
"""


def test_a_loop_body_has_its_own_pairs_and_its_own_copy_of_captured_weights(
    parse: Parse, apply_pass: Apply, assert_text: AssertText
) -> None:
    model = parse(LOOP)
    result = apply_pass(InsertQdq(Ranges({"x": (0.0, 255.0), "s": (-127.5, 127.5)})), model)
    assert result.rules == {"quantize-activation": 2, "quantize-constant": 2}
    assert result.remarks == ()
    assert_text(
        model,
        """
        g (float[T,1,2] xs, float[1,2] h0, int64 n) => (float[1,2] h)
        <bool yes = {1}, float x_scale = {1}, uint8 x_zero_point = {0},
         float s_scale = {1}, uint8 s_zero_point = {128},
         float[2] w_scale = {1, 0.5}, int8[2] w_zero_point = {0, 0}>
        {
          h = Loop (n, yes, h0) <body = step (int64 i, bool go, float[1,2] s)
                                   => (bool on, float[1,2] t)
          <int8[2,2] w_quantized = {127, 0, 0, 127}> {
            s_quantized = QuantizeLinear(s, s_scale, s_zero_point)
            s_dequantized = DequantizeLinear(s_quantized, s_scale, s_zero_point)
            on = Identity(go)
            x = Gather(xs, i)
            x_quantized = QuantizeLinear(x, x_scale, x_zero_point)
            x_dequantized = DequantizeLinear(x_quantized, x_scale, x_zero_point)
            w_dequantized = DequantizeLinear<axis = 1>(w_quantized, w_scale, w_zero_point)
            a = MatMul(x_dequantized, w_dequantized)
            b = MatMul(s_dequantized, w_dequantized)
            c = Add(a, b)
            t = Tanh(c)
          }>
        }""",
    )


def test_branches_share_what_they_capture_but_no_dequantized_weights(
    parse: Parse, apply_pass: Apply, assert_text: AssertText
) -> None:
    model = parse(BRANCHES)
    result = apply_pass(InsertQdq(Ranges({"x": (0.0, 255.0), "r": (0.0, 127.5)})), model)
    assert result.rules == {"quantize-activation": 2, "quantize-constant": 3}
    assert_text(
        model,
        """
        g (float[1,2] x, bool b) => (float[1,2] z)
        <float x_scale = {1}, uint8 x_zero_point = {0},
         float r_scale = {0.5}, uint8 r_zero_point = {0},
         float[2] w_scale = {1, 0.5}, int8[2] w_zero_point = {0, 0}>
        {
          x_quantized = QuantizeLinear(x, x_scale, x_zero_point)
          x_dequantized = DequantizeLinear(x_quantized, x_scale, x_zero_point)
          z = If (b) <
            then_branch = yes () => (float[1,2] p)
            <int8[2,2] w_quantized = {127, 0, 0, 127}> {
              w_dequantized = DequantizeLinear<axis = 1>(w_quantized, w_scale, w_zero_point)
              m = MatMul(x_dequantized, w_dequantized)
              r = Relu(m)
              r_quantized = QuantizeLinear(r, r_scale, r_zero_point)
              r_dequantized = DequantizeLinear(r_quantized, r_scale, r_zero_point)
              p = MatMul(r_dequantized, w_dequantized)
            },
            else_branch = no () => (float[1,2] q)
            <int8[2,2] w_quantized_1 = {127, 0, 0, 127}> {
              w_dequantized_1 = DequantizeLinear<axis = 1>(w_quantized_1, w_scale, w_zero_point)
              q = MatMul(x_dequantized, w_dequantized_1)
            }
          >
        }""",
    )


def test_units_come_in_the_order_in_which_they_run(parse: Parse) -> None:
    units = Placement.of(parse(NESTED), PlacementOptions()).units
    assert [unit.node.outputs[0].name for unit in units] == ["h", "m", "u0", "v", "q"]
    assert tensors_to_observe(parse(NESTED), PlacementOptions()) == ("x", "s", "m", "h")


def test_a_body_without_ranges_stays_in_float_with_a_remark(
    parse: Parse, apply_pass: Apply
) -> None:
    model = parse(BRANCHES)
    result = apply_pass(InsertQdq(Ranges({"x": (0.0, 255.0)})), model)
    reason = "there is no calibration range for tensor 'r'"
    assert [(each.node, each.reason) for each in result.remarks] == [("m", reason), ("p", reason)]
    quantized = [node for node in all_nodes(model) if node.op_type == "QuantizeLinear"]
    assert len(quantized) == 1


@pytest.mark.parametrize("target", ["qdq", "ort", "standard", "integer"])
@pytest.mark.parametrize("text", [LOOP.replace("127, 0, 0, 63.5", "0.7, 0, 0, 0.5"), NESTED])
def test_quantized_and_folded_bodies_stay_near_to_float(
    parse: Parse, apply_pass: Apply, evaluate: Evaluate, text: str, target: str
) -> None:
    model = parse(text)
    feeds = [_feed(model, seed) for seed in range(8)]
    expected = [next(iter(evaluate(model, feed).values())) for feed in feeds]
    ranges = calibrate(model, tensors_to_observe(model, PlacementOptions()), feeds)
    assert ranges.notes == ()
    apply_pass(InsertQdq(ranges), model)
    for each in parse_passes(f"{fold_pass(target)},{TIDY}"):
        apply_pass(each, model)
    inside = [node for node in all_nodes(model) if node.graph is not model.graph]
    plain = [node.op_type for node in inside if node.op_type == "MatMul"]
    assert bool(plain) == (target == "qdq")
    found = [next(iter(evaluate(model, feed).values())) for feed in feeds]
    noise = np.concatenate([(a - b).ravel() for a, b in zip(found, expected, strict=True)])
    signal = np.concatenate([each.ravel() for each in expected])
    assert 10 * np.log10(np.square(signal).sum() / np.square(noise).sum()) > 30


def _feed(model: ir.Model, seed: int) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    every: dict[str, Array] = {
        "xs": random.normal(size=(seed + 1, 1, 2)).astype(np.float32),
        "h0": random.normal(size=(1, 2)).astype(np.float32),
        "x": random.normal(size=(seed + 1, 4)).astype(np.float32),
        "n": np.array(seed + 1),
        "b": np.array(seed % 4 != 0),
    }
    return {value.name or "": every[value.name or ""] for value in model.graph.inputs}
