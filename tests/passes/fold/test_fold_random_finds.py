"""Faults that random graphs found, each as the smallest model that shows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from fixtures.fake_quant.contract import structure
from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.passes.simplify.infer_shapes import InferShapes
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session

TARGETS: tuple[Any, ...] = ("ort", "standard", "qdq", "integer")

_SCALED_MOVEMENT = """
agraph (uint8[2,6] q) => (uint8[6] p)
<float s = {0.3}, uint8 z = {3}, int64[1] shape = {-1}, int64[1] from = {0}, int64[1] to = {6},
 float six = {6.0}, float t = {0.04}>
{
  x = DequantizeLinear (q, s, z)
  r = Reshape (x, shape)
  c = Slice (r, from, to)
  d = Div (c, six)
  p = QuantizeLinear (d, t, z)
}
"""

_VECTOR = """
agraph (int8[6] q) => (float[8] y, float[8] v)
<float s = {0.01}, int8 z = {5}, int8[6,8] w, float sw = {0.0078125}, int32[8] b = {-1280, -8112,
 4882, 9419, -2297, 606, -2017, -2179}, float sb = {0.000078125}, float t = {0.1}>
{
  x = DequantizeLinear (q, s, z)
  m = DequantizeLinear (w, sw)
  o = DequantizeLinear (b, sb)
  h = MatMul (x, m)
  v = Add (h, o)
  p = QuantizeLinear (v, t, z)
  y = DequantizeLinear (p, t, z)
}
"""

_TURNED = """
agraph (uint8[4,6] q) => (uint8[6,2] p)
<float s = {0.0117}, uint8 z = {5}, int8[4,2] w = {1,-2,3,-4,5,-6,7,-8}, float sw = {0.5},
 float[2] b = {1.0, -1.0}, float t = {0.04}>
{
  x = DequantizeLinear (q, s, z)
  m = DequantizeLinear (w, sw)
  g = Gemm <transA = 1> (x, m, b)
  p = QuantizeLinear (g, t, z)
}
"""


def _outputs(model: ir.Model, feed: dict[str, Any]) -> dict[str, Any]:
    return Session(model, REFERENCE).run(feed)


@pytest.mark.parametrize("target", TARGETS)
def test_a_scaling_behind_a_movement_is_kept(target: Any, parse: Callable[..., ir.Model]) -> None:
    model = parse(_SCALED_MOVEMENT)
    feed = {"q": np.arange(0, 240, 20, dtype=np.uint8).reshape(2, 6)}
    wanted = _outputs(model, feed)["p"]
    FoldQdq(target).run(model)
    np.testing.assert_array_equal(_outputs(model, feed)["p"], wanted)


@pytest.mark.parametrize("target", TARGETS)
def test_a_bias_does_not_add_a_dimension_to_a_vector(
    target: Any, parse: Callable[..., ir.Model]
) -> None:
    numbers = np.random.default_rng(1).integers(-100, 100, (6, 8)).astype(np.int8)
    text = _VECTOR.replace(
        "int8[6,8] w", f"int8[6,8] w = {{{', '.join(map(str, numbers.reshape(-1).tolist()))}}}"
    )
    model = parse(text)
    feed = {"q": np.array([3, -40, 90, 7, 0, -128], np.int8)}
    wanted = _outputs(model, feed)
    FoldQdq(target).run(model)
    for name, got in _outputs(model, feed).items():
        np.testing.assert_allclose(got, wanted[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_transposed_data_is_not_said_to_have_the_shape_of_the_result(
    target: Any, parse: Callable[..., ir.Model]
) -> None:
    model = parse(_TURNED)
    feed = {"q": np.arange(24, dtype=np.uint8).reshape(4, 6)}
    wanted = _outputs(model, feed)["p"]
    FoldQdq(target).run(model)
    for node in model.graph:
        if node.op_type == "Transpose":
            assert node.outputs[0].shape == ir.Shape([6, 4])
    np.testing.assert_array_equal(_outputs(model, feed)["p"], wanted)


_COLUMNS = """
agraph (uint8[4,2] q) => (uint8[4,2] p)
<float s = {0.0117}, uint8 z = {5}, uint8[2,2] w = {255, 0, 10, 255},
 float[2] sw = {0.01, 0.02}, uint8[2] zw = {121, 136}, float third = {0.3}, float t = {0.21}>
{
  x = DequantizeLinear (q, s, z)
  m = DequantizeLinear <axis = 1> (w, sw, zw)
  h = MatMul (x, m)
  d = Div (h, third)
  p = QuantizeLinear (d, t, z)
}
"""


@pytest.mark.parametrize("target", TARGETS)
def test_a_zero_point_a_column_survives_a_scaling(
    target: Any, parse: Callable[..., ir.Model]
) -> None:
    model = parse(_COLUMNS)
    feed = {"q": np.arange(0, 248, 31, dtype=np.uint8).reshape(4, 2)}
    wanted = _outputs(model, feed)["p"]
    FoldQdq(target).run(model)
    np.testing.assert_array_equal(_outputs(model, feed)["p"], wanted)


@pytest.mark.parametrize("target", ["ort", "standard", "integer"])
def test_a_limit_within_another_is_not_written_again(
    target: Any, parse: Callable[..., ir.Model]
) -> None:
    model = parse("""
    agraph (uint8[6] q) => (uint8[6] p)
    <float s = {0.5}, uint8 z = {100}, float low = {-3.0}, float high = {1000.0}>
    {
      x = DequantizeLinear (q, s, z)
      r = Relu (x)
      c = Clip (r, low, high)
      p = QuantizeLinear (c, s, z)
    }
    """)
    feed = {"q": np.array([0, 99, 100, 101, 239, 255], np.uint8)}
    wanted = _outputs(model, feed)["p"]
    FoldQdq(target).run(model)
    assert [node.op_type for node in model.graph].count("Clip") == 1
    np.testing.assert_array_equal(_outputs(model, feed)["p"], wanted)


@pytest.mark.parametrize("target", ["ort", "standard", "integer"])
def test_limits_apart_leave_one_code(target: Any, parse: Callable[..., ir.Model]) -> None:
    model = parse("""
    agraph (uint8[6] q) => (uint8[6] p)
    <float s = {0.5}, uint8 z = {100}, float zero = {0.0}, float one = {1.0}, float two = {2.0},
     float six = {6.0}>
    {
      x = DequantizeLinear (q, s, z)
      a = Clip (x, zero, one)
      b = Clip (a, two, six)
      c = Clip (b, zero, two)
      p = QuantizeLinear (c, s, z)
    }
    """)
    feed = {"q": np.array([0, 99, 100, 101, 239, 255], np.uint8)}
    FoldQdq(target).run(model)
    assert [node.op_type for node in model.graph].count("Clip") == 2
    assert _outputs(model, feed)["p"].tolist() == [104] * 6


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op_type", ["Sigmoid", "Tanh"])
def test_a_function_of_a_sum_is_not_taken_for_one_of_its_operand(
    op_type: str, target: Any, parse: Callable[..., ir.Model]
) -> None:
    """The sum has another reader, so that it is not among the nodes the function replaces."""
    text = """
    agraph (uint8[6] q) => (uint8[6] p, uint8[6] o)
    <float s = {0.0145}, uint8 z = {161}, float t = {0.0078125}, uint8 u = {128}, float v = {0.011}>
    {
      x = DequantizeLinear (q, s, z)
      a = Add (x, x)
      f = Sigmoid (a)
      p = QuantizeLinear (f, t, u)
      g = DequantizeLinear (p, t, u)
      m = Mul (a, g)
      o = QuantizeLinear (m, v, u)
    }
    """
    model = parse(text.replace("Sigmoid", op_type))
    feed = {"q": np.array([0, 60, 120, 161, 200, 255], np.uint8)}
    wanted = _outputs(model, feed)
    FoldQdq(target).run(model)
    for name, got in _outputs(model, feed).items():
        assert np.max(np.abs(got.astype(int) - wanted[name])) <= 1, name


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "op", ["Pad (x, pads, number)", "Clip (x, low, number)", "Min (x, number)", "Pad (x, pads)"]
)
def test_a_number_between_codes_is_rounded_before_it_is_requantized(
    op: str, target: Any, parse: Callable[..., ir.Model]
) -> None:
    model = parse(f"""
    agraph (uint8[6] q) => (uint8[] p)
    <float s = {{0.015625}}, uint8 z = {{3}}, float t = {{0.001953125}}, uint8 u = {{0}},
     float number = {{0.4000001}}, float low = {{-1.0}}, int64[2] pads = {{1, 2}}>
    {{
      x = DequantizeLinear (q, s, z)
      r = {op}
      c = QuantizeLinear (r, s, z)
      d = DequantizeLinear (c, s, z)
      p = QuantizeLinear (d, t, u)
    }}
    """)
    model.graph.outputs[0].shape = None
    feed = {"q": np.array([0, 3, 10, 20, 29, 200], np.uint8)}
    wanted = _outputs(model, feed)["p"]
    FoldQdq(target).run(model)
    np.testing.assert_array_equal(_outputs(model, feed)["p"], wanted)


@pytest.mark.parametrize("target", TARGETS)
def test_float_weights_behind_a_scale_of_one_are_not_quantized_again(
    target: Any, parse: Callable[..., ir.Model]
) -> None:
    """ONNX Runtime removes a Mul by one, and then sees DequantizeLinear in front."""
    numbers = np.random.default_rng(1).integers(-120, 121, 32).tolist()
    model = parse(f"""
    agraph (uint8[2,4,6,6] q) => (uint8[2,2,7,7] p)
    <float s = {{1.0}}, uint8 z = {{0}}, int8[4,2,2,2] w = {{{", ".join(map(str, numbers))}}},
     float sw = {{0.00390625}}, uint8 u = {{158}}>
    {{
      x = DequantizeLinear (q, s, z)
      v = DequantizeLinear (w, sw)
      c = ConvTranspose (x, v)
      p = QuantizeLinear (c, s, u)
    }}
    """)
    feed = {"q": np.random.default_rng(0).integers(0, 64, (2, 4, 6, 6)).astype(np.uint8)}
    wanted = _outputs(model, feed)["p"]
    FoldQdq(target).run(model)
    np.testing.assert_array_equal(Session(model, DEPLOYMENT).run(feed)["p"], wanted)


@pytest.mark.parametrize("target", TARGETS)
def test_a_bias_of_more_dimensions_than_a_product_of_unknown_ones_stays_apart(
    target: Any, parse: Callable[..., ir.Model]
) -> None:
    numbers = ", ".join(map(str, range(-16, 16)))
    model = parse(f"""
    agraph (uint8[4] q) => (uint8[1,8] p)
    <float s = {{0.01}}, uint8 z = {{5}}, int8[4,8] w = {{{numbers}}}, float sw = {{0.02}},
     float[1,8] b = {{0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8}}, float t = {{0.01}}>
    {{
      x = DequantizeLinear (q, s, z)
      m = DequantizeLinear (w, sw)
      h = MatMul (x, m)
      v = Add (h, b)
      p = QuantizeLinear (v, t, z)
    }}
    """)
    model.graph.inputs[0].shape = None
    feed = {"q": np.array([3, 40, 90, 7], np.uint8)}
    wanted = _outputs(model, feed)["p"]
    FoldQdq(target).run(model)
    np.testing.assert_array_equal(_outputs(model, feed)["p"], wanted)


@pytest.mark.parametrize("target", ["standard", "integer"])
def test_float_ops_that_lose_a_reader_are_folded_for_the_other(
    target: Any, parse: Callable[..., ir.Model]
) -> None:
    """The sum is rounded by two readers otherwise; each computes it for itself."""
    model = parse("""
    agraph (uint8[6] q) => (uint8[6] p, uint8[3] o)
    <float s = {0.3}, uint8 z = {158}, float third = {0.1}, float t = {0.4}, uint8 u = {128},
     float v = {0.25}, int64[3] rows = {1, 4, 5}>
    {
      x = DequantizeLinear (q, s, z)
      a = Add (x, third)
      p = QuantizeLinear (a, t, u)
      g = Gather (a, rows)
      o = QuantizeLinear (g, v, u)
    }
    """)
    feed = {"q": np.array([0, 60, 120, 161, 200, 255], np.uint8)}
    wanted = _outputs(model, feed)
    FoldQdq(target).run(model)
    assert not {"DequantizeLinear", "QuantizeLinear"} & {node.op_type for node in model.graph}
    for name, got in _outputs(model, feed).items():
        np.testing.assert_array_equal(got, wanted[name])


@pytest.mark.parametrize("target", ["standard", "integer"])
def test_a_function_that_bends_far_below_what_a_product_reaches_is_not_two_slopes(
    target: Any, parse: Callable[..., ir.Model]
) -> None:
    """The HardSwish bends between -3 and 3, and the product reaches more than 2^18."""
    model = parse("""
    agraph (uint8[4,16] q, uint8[16,5] r) => (uint8[4,5] p)
    <float s = {0.75}, uint8 z = {100}, float t = {1.5}, uint8 u = {169}, float three = {3.0},
     float zero = {0.0}, float six = {6.0}, float o = {0.03}, uint8 v = {60}>
    {
      x = DequantizeLinear (q, s, z)
      y = DequantizeLinear (r, t, u)
      m = MatMul (x, y)
      a = Add (m, three)
      c = Clip (a, zero, six)
      h = Mul (m, c)
      d = Div (h, six)
      p = QuantizeLinear (d, o, v)
    }
    """)
    feed = {
        "q": np.array([[code] + [100] * 15 for code in (99, 100, 101, 255)], np.uint8),
        "r": np.arange(167, 247, dtype=np.uint8).reshape(16, 5),
    }
    wanted = _outputs(model, feed)["p"]
    InferShapes().run(model)
    assert FoldQdq(target).run(model).rules["fold-curve"] == 1
    np.testing.assert_array_equal(_outputs(model, feed)["p"], wanted)


@pytest.mark.parametrize("target", ["standard", "integer"])
def test_a_convolution_of_unknown_rank_that_two_round_runs(
    target: Any, parse: Callable[..., ir.Model]
) -> None:
    model = parse("""
    agraph (uint8[1,4,12] q) => (uint8[] p, uint8[] o)
    <float s = {0.0135}, uint8 z = {128}, int8[4,1,1] w = {-128, 127, -90, 40},
     float[4] sw = {0.0039, 0.0033, 0.0052, 0.0055}, float t = {0.0103}, uint8 u = {88},
     float v = {0.0075}>
    {
      x = DequantizeLinear (q, s, z)
      y = DequantizeLinear <axis = 0> (w, sw)
      c = Conv <group = 4> (x, y)
      p = QuantizeLinear (c, t, u)
      o = QuantizeLinear (c, v, u)
    }
    """)
    for output in model.graph.outputs:
        output.shape = None
    feed = {"q": np.random.default_rng(0).integers(0, 256, (1, 4, 12)).astype(np.uint8)}
    wanted = _outputs(model, feed)
    FoldQdq(target).run(model)
    for name, got in _outputs(model, feed).items():
        np.testing.assert_array_equal(got, wanted[name])


@pytest.mark.parametrize("target", TARGETS)
def test_halves_of_a_mean_of_six_go_to_the_even_code(
    target: Any, parse: Callable[..., ir.Model]
) -> None:
    """No binary fraction is a sixth: every second half went down to an odd code."""
    model = parse("""
    agraph (uint8[300,6] q) => (uint8[300] p)
    <float s = {0.25}, uint8 z = {0}, uint8 u = {7}, int64[1] last = {1}>
    {
      x = DequantizeLinear (q, s, z)
      m = ReduceMean <keepdims = 0> (x, last)
      p = QuantizeLinear (m, s, u)
    }
    """)
    feed = {"q": np.random.default_rng(0).integers(0, 200, (300, 6)).astype(np.uint8)}
    wanted = _outputs(model, feed)["p"]
    InferShapes().run(model)
    FoldQdq(target).run(model)
    np.testing.assert_array_equal(_outputs(model, feed)["p"], wanted)


@pytest.mark.parametrize("rows", ["2,3,4", "24"])
def test_a_bias_that_is_finer_than_the_sums_is_not_rounded_to_them(
    rows: str,
    parse: Callable[..., ir.Model],
) -> None:
    model = parse(f"""
    agraph (uint8[{rows},1] q) => (uint16[{rows},4] p)
    <float s = {{0.00234}}, uint8 z = {{0}}, int8[1,4] w = {{27, 4, -27, 90}},
     float sw = {{0.01534}},
     float[4] b = {{-0.06462315, -0.06944706, 0.13473432, 0.0301}}, float t = {{0.0000035}},
     uint16 u = {{20000}}>
    {{
      x = DequantizeLinear (q, s, z)
      y = DequantizeLinear (w, sw)
      m = MatMul (x, y)
      a = Add (b, m)
      p = QuantizeLinear (a, t, u)
    }}
    """)
    feed = {
        "q": np.random.default_rng(0)
        .integers(0, 256, [*map(int, rows.split(",")), 1])
        .astype(np.uint8)
    }
    wanted = _outputs(model, feed)["p"]
    InferShapes().run(model)
    FoldQdq("qdq").run(model)
    got = Session(model, DEPLOYMENT).run(feed)["p"]
    assert np.max(np.abs(got.astype(int) - wanted)) <= 1


@pytest.mark.parametrize("target", TARGETS)
def test_a_guard_is_taken_back_to_what_it_was_split_from(
    target: Any, parse: Callable[..., ir.Model]
) -> None:
    """A second fold must not find more to fold: of two values alike, one is read by the Pad."""
    model = parse("""
    agraph (float[6] f) => (int8[6] q, float[?] y, float[?] v)
    <float s = {0.0925}, int8 z = {-128}, int64[2] ends = {1, 0}, float nil = {0.0},
     int8[6,1] w = {-3, 28, 127, 5, -90, 14}, float sw = {0.0039}>
    {
      r = Relu (f)
      q = QuantizeLinear (r, s, z)
      x = DequantizeLinear (q, s, z)
      p = Pad (x, ends, nil)
      a = Abs (p)
      y = Sqrt (a)
      g = DequantizeLinear (w, sw)
      m = MatMul (x, g)
      k = QuantizeLinear (m, s, z)
      v = DequantizeLinear (k, s, z)
    }
    """)
    InferShapes().run(model)
    once = FoldQdq(target).run(model).model
    first = structure(ir.to_proto(once).graph)
    assert structure(ir.to_proto(FoldQdq(target).run(once).model).graph) == first


@pytest.mark.parametrize("target", TARGETS)
def test_a_bias_of_more_bits_than_a_float_is_read_as_it_was_written(
    target: Any, parse: Callable[..., ir.Model]
) -> None:
    model = parse("""
    agraph (uint8[2,2] q) => (uint8[2,4] p)
    <float s = {0.0000009536743}, uint8 z = {137}, int8[2,4] w = {23, -37, -1, -128, 2, 6, -11, 84},
     float sw = {0.0072354195}, int32[4] b = {92247200, 25013360, -54265476, 129779352},
     float sb = {0.0000000069002337}, float t = {0.004}>
    {
      x = DequantizeLinear (q, s, z)
      y = DequantizeLinear (w, sw)
      o = DequantizeLinear (b, sb)
      m = Gemm (x, y, o)
      p = QuantizeLinear (m, t, z)
    }
    """)
    once = FoldQdq(target).run(model).model
    first = structure(ir.to_proto(once).graph)
    assert structure(ir.to_proto(FoldQdq(target).run(once).model).graph) == first
