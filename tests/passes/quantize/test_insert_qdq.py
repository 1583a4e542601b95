"""insert-qdq: what it writes, as text and in numbers, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from onnxfold.passes.base import Pass, PassResult
from onnxfold.passes.constants import constant_array
from onnxfold.passes.errors import PassError, UsageError
from onnxfold.passes.quantize.insert_qdq import InsertQdq
from onnxfold.passes.quantize.placement import PlacementOptions, tensors_to_observe
from onnxfold.passes.quantize.ranges import Ranges

Array = npt.NDArray[Any]
Parse = Callable[..., ir.Model]
Apply = Callable[[Pass | str, ir.Model], PassResult]
AssertText = Callable[[ir.Model, str], None]
Evaluate = Callable[[ir.Model, Mapping[str, Any]], dict[str, Any]]

CONV_RELU = """
g (float[N,2,4,4] x) => (float[N,2,4,4] y)
<float[2,2,1,1] w = {127, 0, -25.4, 12.7}, float[2] b = {1, -2}>
{
  c = Conv(x, w, b)
  y = Relu(c)
}
"""
CONV_RELU_RANGES = Ranges({"x": (-1.0, 1.55), "y": (0.0, 255.0)})


def _everything(model: ir.Model, low: float = -1.0, high: float = 1.0) -> Ranges:
    names = tensors_to_observe(model, PlacementOptions())
    return Ranges(dict.fromkeys(names, (low, high)))


def _op_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def _parameters(node: ir.Node) -> tuple[Any, Any]:
    return constant_array(node.inputs[1]), constant_array(node.inputs[2])


def test_conv_relu(parse: Parse, apply_pass: Apply, assert_text: AssertText) -> None:
    model = parse(CONV_RELU)
    result = apply_pass(InsertQdq(CONV_RELU_RANGES), model)
    assert result.rules == {"quantize-activation": 2, "quantize-constant": 2}
    assert result.remarks == ()
    s_x, s_w = np.float32(0.01), np.array([1.0, 0.2], np.float32)
    s_b: Array = np.asarray(s_x * s_w, np.float32)
    q_b = np.rint(np.array([1.0, -2.0]) / s_b.astype(np.float64)).astype(int)
    assert_text(
        model,
        f"""
        g (float[N,2,4,4] x) => (float[N,2,4,4] y)
        <float x_scale = {{{s_x!r}}}, uint8 x_zero_point = {{100}},
         int8[2,2,1,1] w_quantized = {{127, 0, -127, 64}},
         float[2] w_scale = {{{s_w[0]!r}, {s_w[1]!r}}}, int8[2] w_zero_point = {{0, 0}},
         int32[2] b_quantized = {{{q_b[0]}, {q_b[1]}}},
         float[2] b_scale = {{{s_b[0]!r}, {s_b[1]!r}}}, int32[2] b_zero_point = {{0, 0}},
         float y_scale = {{1}}, uint8 y_zero_point = {{0}}>
        {{
          x_quantized = QuantizeLinear(x, x_scale, x_zero_point)
          x_dequantized = DequantizeLinear(x_quantized, x_scale, x_zero_point)
          w_dequantized = DequantizeLinear<axis = 0>(w_quantized, w_scale, w_zero_point)
          b_dequantized = DequantizeLinear<axis = 0>(b_quantized, b_scale, b_zero_point)
          c = Conv(x_dequantized, w_dequantized, b_dequantized)
          y_original = Relu(c)
          y_quantized = QuantizeLinear(y_original, y_scale, y_zero_point)
          y = DequantizeLinear(y_quantized, y_scale, y_zero_point)
        }}""".replace("np.float32(", "")
        .replace(")}", "}")
        .replace("),", ","),
    )


def test_the_interface_and_unrelated_nodes_stay(parse: Parse, apply_pass: Apply) -> None:
    model = parse(CONV_RELU)
    apply_pass(InsertQdq(CONV_RELU_RANGES), model)
    assert [
        (v.name, v.dtype, str(v.shape)) for v in (*model.graph.inputs, *model.graph.outputs)
    ] == [
        ("x", ir.DataType.FLOAT, "[N,2,4,4]"),
        ("y", ir.DataType.FLOAT, "[N,2,4,4]"),
    ]


def test_same_input_gives_the_same_bytes(parse: Parse, apply_pass: Apply) -> None:
    def run() -> bytes:
        model = parse(CONV_RELU)
        apply_pass(InsertQdq(CONV_RELU_RANGES), model)
        return ir.to_proto(model).SerializeToString(deterministic=True)

    assert run() == run()


@pytest.mark.parametrize("activations", ["u8", "s8"])
@pytest.mark.parametrize(("low", "high"), [(-0.3, 1.0), (0.4, 2.0), (-3.0, -1.0), (0.0, 0.0)])
def test_zero_is_a_code_and_inside_the_range_the_error_is_half_a_step(
    parse: Parse, apply_pass: Apply, activations: Any, low: float, high: float
) -> None:
    model = parse(CONV_RELU)
    apply_pass(InsertQdq(Ranges({"x": (low, high), "y": (0, 1)}), activations), model)
    quantize = next(node for node in model.graph if node.op_type == "QuantizeLinear")
    scale, zero_point = _parameters(quantize)
    limits = np.iinfo(zero_point.dtype)
    assert limits.min <= zero_point <= limits.max
    reals = np.linspace(min(low, 0.0), max(high, 0.0), 1001)
    codes = np.clip(np.rint(reals / scale) + int(zero_point), limits.min, limits.max)
    # At the ends a rounded zero point may cut off another half step.
    assert np.abs((codes - int(zero_point)) * scale - reals).max() <= scale * (1 + 1e-6)
    inner = reals[(reals > low + scale) & (reals < high - scale)]
    codes = np.clip(np.rint(inner / scale) + int(zero_point), limits.min, limits.max)
    assert np.all(np.abs((codes - int(zero_point)) * scale - inner) <= scale / 2 * (1 + 1e-5))


TIED = """
g (float[N,2,4,4] x) => (float[N,2,2,2] y, int64[4] shape)
<float[2,2,1,1] w = {1, 0, 0.5, 1}, float[2,4,1,1] v = {1,0,0,1, 0,1,1,0}>
{
  c1 = Conv(x, w)
  p = MaxPool<kernel_shape = [2,2], strides = [2,2]>(c1)
  t = Transpose<perm = [0,1,3,2]>(p)
  c = Concat<axis = 1>(p, t)
  shape = Shape(c)
  s = Sigmoid(c)
  y = Conv(c, v)
}
"""


def test_operators_that_move_values_keep_scale_and_zero_point(
    parse: Parse, apply_pass: Apply
) -> None:
    model = parse(TIED)
    apply_pass(InsertQdq(_everything(model, -1.0, 3.0)), model)
    pairs = {
        (node.inputs[1], node.inputs[2])
        for node in model.graph
        if node.op_type == "QuantizeLinear"
        and node.inputs[0] is not None
        and node.inputs[0].name in ("c1", "p", "t", "c")
    }
    assert len(pairs) == 1


def test_who_reads_a_quantized_result_reads_it_dequantized_and_its_shape_from_codes(
    parse: Parse, apply_pass: Apply
) -> None:
    model = parse(TIED)
    apply_pass(InsertQdq(_everything(model)), model)
    reads = {node.op_type: node.inputs[0] for node in model.graph}
    assert reads["Sigmoid"] is not None
    assert reads["Sigmoid"].name == "c_dequantized"
    assert reads["Shape"] is not None
    assert reads["Shape"].name == "c_quantized"


def test_who_reads_a_float_result_in_float_goes_on_reading_it(
    parse: Parse, apply_pass: Apply
) -> None:
    model = parse("""
    g (float[N,2,4,4] x) => (float[N,2,4,4] y)
    <float[2,2,1,1] w = {1, 0, 0.5, 1}>
    {
      s = Sigmoid(x)
      c = Conv(s, w)
      y = Mul(s, c)
    }""")
    apply_pass(InsertQdq(_everything(model)), model)
    assert _op_types(model).count("QuantizeLinear") == 2
    mul = next(node for node in model.graph if node.op_type == "Mul")
    assert [value and value.name for value in mul.inputs] == ["s", "c_dequantized"]


def test_shared_weights_and_biases_have_one_copy_for_each_need(
    parse: Parse, apply_pass: Apply
) -> None:
    model = parse("""
    g (float[N,2,4,4] x, float[N,2,4,4] z) => (float[N,2,4,4] a, float[N,2,4,4] b, float[N,2,4,4] c)
    <float[2,2,1,1] w = {1, 0, 0.5, 1}, float[2] bias = {1, 2}>
    {
      a = Conv(x, w, bias)
      b = Conv(z, w, bias)
      c = Conv(x, w, bias)
    }""")
    ranges = {"x": (0.0, 1.0), "z": (0.0, 2.0), "a": (0.0, 1.0), "b": (0.0, 1.0), "c": (0.0, 1.0)}
    apply_pass(InsertQdq(Ranges(ranges)), model)
    first, second, third = (node for node in model.graph if node.op_type == "Conv")
    assert first.inputs[1] is second.inputs[1] is third.inputs[1]
    assert first.inputs[2] is third.inputs[2]
    assert first.inputs[2] is not second.inputs[2]
    assert not {"w", "bias"} & set(model.graph.initializers)


def test_weights_in_constant_nodes_and_behind_identity(parse: Parse, apply_pass: Apply) -> None:
    model = parse("""
    g (float[N,2] x) => (float[N,2] y)
    {
      k = Constant<value = float[2,2] {1, 0, 0.5, 1}>()
      i = Identity(k)
      m = MatMul(x, i)
      y = MatMul(m, i)
    }""")
    apply_pass(InsertQdq(_everything(model)), model)
    assert _op_types(model) == [
        "QuantizeLinear",
        "DequantizeLinear",
        "DequantizeLinear",
        "MatMul",
        "QuantizeLinear",
        "DequantizeLinear",
        "MatMul",
    ]


def test_a_constant_operand_of_add_is_quantized_like_data(
    parse: Parse, apply_pass: Apply, evaluate: Evaluate
) -> None:
    model = parse("""
    g (float[1,2,1,1] x) => (float[1,2,1,1] y)
    <float[2,2,1,1] w = {1, 0, 0, 1}, float[2,1,1] k = {-1, 3}>
    {
      c = Conv(x, w)
      a = Add(c, k)
      y = Conv(a, w)
    }""")
    apply_pass(InsertQdq(_everything(model, -4.0, 4.0)), model)
    add = next(node for node in model.graph if node.op_type == "Add")
    assert add.inputs[1] is not None
    dequantize = add.inputs[1].producer()
    assert dequantize is not None
    assert dequantize.inputs[0] is not None
    assert dequantize.inputs[0].dtype == ir.DataType.UINT8
    x = np.array([0.5, -0.25], np.float32).reshape(1, 2, 1, 1)
    np.testing.assert_allclose(evaluate(model, {"x": x})["y"].ravel(), [-0.5, 2.75], atol=0.08)


def test_bodies_that_capture_a_quantized_value_read_it_dequantized(
    parse: Parse, apply_pass: Apply, evaluate: Evaluate
) -> None:
    model = parse("""
    g (float[1,2,1,1] x, bool b) => (float[1,2,1,1] z)
    <float[2,2,1,1] w = {1, 0, 0, 1}>
    {
      c = Conv(x, w)
      z = If (b) <then_branch = yes () => (float[1,2,1,1] p) { p = Neg(c) },
                  else_branch = no () => (float[1,2,1,1] q) { q = Conv(c, w) }>
    }""")
    result = apply_pass(InsertQdq(_everything(model)), model)
    assert result.remarks == ()
    # The weights once for each graph that reads them; "c" is quantized where it is computed.
    assert result.rules == {"quantize-activation": 3, "quantize-constant": 2}
    x = np.array([0.5, -0.25], np.float32).reshape(1, 2, 1, 1)
    for branch, expected in ((True, -x), (False, x)):
        found = evaluate(model, {"x": x, "b": np.array(branch)})["z"]
        np.testing.assert_allclose(found, expected, atol=0.01)


def test_tensors_without_a_range_leave_their_operators_in_float_with_a_remark(
    parse: Parse, apply_pass: Apply
) -> None:
    model = parse(TIED)
    ranges: dict[str, tuple[float, float]] = {"x": (0.0, 1.0), "c1": (0.0, 1.0)}
    result = apply_pass(InsertQdq(Ranges(ranges)), model)
    assert [(each.node, each.reason) for each in result.remarks] == [
        ("y", "there is no calibration range for tensor 'y'")
    ]
    assert all(remark.advice for remark in result.remarks)


def test_the_ranges_of_another_model_are_refused(parse: Parse) -> None:
    with pytest.raises(UsageError, match="calibrate this very model"):
        InsertQdq(Ranges({"other": (0.0, 1.0)})).run(parse(CONV_RELU))


def test_a_quantized_model_is_refused(parse: Parse, apply_pass: Apply) -> None:
    model = parse(CONV_RELU)
    apply_pass(InsertQdq(CONV_RELU_RANGES), model)
    with pytest.raises(UsageError, match=r"quantized already \(QuantizeLinear 'x_quantized'\)"):
        InsertQdq(CONV_RELU_RANGES).run(model)


def test_an_old_opset_is_refused_with_advice(parse: Parse) -> None:
    with pytest.raises(PassError, match="run upgrade-opset first"):
        InsertQdq(CONV_RELU_RANGES).run(parse(CONV_RELU, opset=11))


def test_a_model_with_nothing_to_quantize_is_left_as_it_is(parse: Parse, apply_pass: Apply) -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    assert not apply_pass(InsertQdq(Ranges({})), model).modified


@pytest.mark.parametrize(
    "name", ["conv_net", "mobile_net", "transformer", "constant_nodes", "control_flow"]
)
def test_fixtures_stay_valid(name: str, fixtures_dir: Path, apply_pass: Apply) -> None:
    model = ir.load(fixtures_dir / f"{name}.onnx")
    if model.opset_imports[""] < 13:
        apply_pass("upgrade-opset", model)
    result = apply_pass(InsertQdq(_everything(model)), model)
    assert result.modified
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_constants_that_join_in_widen_the_shared_range(parse: Parse, apply_pass: Apply) -> None:
    model = parse("""
    g (float[1,1,1,1] x) => (float[1,1,1,1] y)
    <float[1,1,1,1] w = {1}, float[1,1,1,1] k = {9}, float[1,2,1,1] v = {1, 1}>
    {
      c = Conv(x, w)
      both = Concat<axis = 1>(c, k)
      y = Conv(both, v)
    }""")
    apply_pass(InsertQdq(_everything(model, -1.0, 1.0)), model)
    quantize = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    scales = [_parameters(node)[0] for node in quantize if node.name != "x_quantized"]
    # x, then c and both; y has no reader that would tie it to them.
    assert scales[:2] == [np.float32(10 / 255)] * 2


def test_a_graph_output_before_a_clamp_keeps_its_own_pair(parse: Parse, apply_pass: Apply) -> None:
    model = parse("""
    g (float[1,1,1,1] x) => (float[1,1,1,1] c, float[1,1,1,1] y)
    <float[1,1,1,1] w = {1}>
    {
      c = Conv(x, w)
      r = Relu(c)
      y = Conv(r, w)
    }""")
    apply_pass(InsertQdq(_everything(model)), model)
    producers = [value.producer() for value in model.graph.outputs]
    assert [node and node.op_type for node in producers] == ["DequantizeLinear"] * 2
    relu = next(node for node in model.graph if node.op_type == "Relu")
    assert relu.inputs[0] is model.graph.outputs[0]
