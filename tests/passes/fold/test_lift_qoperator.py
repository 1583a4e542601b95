"""Quantized operators lifted to real ones: what is written, what stays, and what the fold makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.fold.lift_qoperator import LiftQoperator
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import FOLD
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.verify.pass_gate import ContractGate
from onnxfold.runtime.verify.region_gate import check_integer_contract

_DOMAINS = '<ir_version: 10, opset_import: ["" : 17, "com.microsoft" : 1]>'
_X = "float xs = {0.02}, uint8 xz = {120}, float ys = {0.05}, uint8 yz = {131}"
_A = "uint8[4,6] a"
_B = "uint8[4,6] b"
_CONV_W = "int8[2,3,1,1] w = {10, -20, 33, 4, 50, -66}"
_MATRIX = "int8[6,2] w = {10, -20, 33, 4, 50, -66, 127, -127, 1, 2, 3, 4}"
_PER_CHANNEL = "float[2] ws = {0.01, 0.02}, int8[2] wz = {0, 0}"
_PER_TENSOR = "float ws = {0.01}, int8 wz = {0}"


def _model(inputs: str, output: str, constants: str, body: str, opset: int = 17) -> str:
    header = _DOMAINS.replace("17", str(opset))
    return f"{header} g ({inputs}) => ({output}) <{constants}> {{ {body} }}"


_IMAGE = "uint8[2,3,5,4] a"
_CONV_OUT = "uint8[2,2,5,4] y"
CASES: dict[str, tuple[str, dict[str, int], dict[str, int]]] = {
    "convolution": (
        _model(_IMAGE, _CONV_OUT, f"{_X}, {_CONV_W}, {_PER_TENSOR}",
               "y = QLinearConv (a, xs, xz, w, ws, wz, ys, yz)"),
        {"DequantizeLinear": 2, "Conv": 1, "QuantizeLinear": 1},
        {"QLinearConv": 1},
    ),
    "convolution per channel with bias": (
        _model(_IMAGE, _CONV_OUT, f"{_X}, {_CONV_W}, {_PER_CHANNEL}, int32[2] c = {{900, -77}}",
               "y = QLinearConv <pads: ints = [0, 0, 0, 0]> (a, xs, xz, w, ws, wz, ys, yz, c)"),
        {"DequantizeLinear": 3, "Conv": 1, "QuantizeLinear": 1},
        {"QLinearConv": 1},
    ),
    "convolution of com.microsoft with u8 weights": (
        _model(_IMAGE, _CONV_OUT, f"{_X}, uint8[2,3,1,1] w = {{10, 20, 200, 4, 50, 66}}, "
               "float ws = {0.01}, uint8 wz = {90}",
               "y = com.microsoft.QLinearConv (a, xs, xz, w, ws, wz, ys, yz)"),
        {"DequantizeLinear": 2, "Conv": 1, "QuantizeLinear": 1},
        {"QLinearConv": 1},
    ),
    "convolution of single pixels, channels last": (
        _model("uint8[2,5,4,3] a", "uint8[2,5,4,2] y",
               f"{_X}, {_CONV_W}, {_PER_CHANNEL}, int32[2] c = {{900, -77}}",
               "y = com.microsoft.QLinearConv <channels_last: int = 1> "
               "(a, xs, xz, w, ws, wz, ys, yz, c)"),
        {"DequantizeLinear": 3, "MatMul": 1, "Add": 1, "QuantizeLinear": 1},
        {"QLinearConv": 0},
    ),
    "product per column": (
        _model(_A, "uint8[4,2] y", f"{_X}, {_MATRIX}, {_PER_CHANNEL}",
               "y = QLinearMatMul (a, xs, xz, w, ws, wz, ys, yz)"),
        {"DequantizeLinear": 2, "MatMul": 1, "QuantizeLinear": 1},
        {"QLinearMatMul": 1},
    ),
    "product of two activations": (
        _model(f"{_A}, uint8[6,3] b", "uint8[4,3] y", _X,
               "y = QLinearMatMul (a, xs, xz, b, ys, yz, ys, xz)"),
        {"DequantizeLinear": 2, "MatMul": 1, "QuantizeLinear": 1},
        {"QLinearMatMul": 1},
    ),
    "product to float with bias": (
        _model(_A, "float[4,2] y", f"{_X}, {_MATRIX}, {_PER_CHANNEL}, float[2] c = {{0.5, -3.0}}",
               "y = com.microsoft.MatMulIntegerToFloat (a, w, xs, ws, xz, wz, c)"),
        {"DequantizeLinear": 2, "MatMul": 1, "Add": 1},
        {"MatMulIntegerToFloat": 1},
    ),
    "gemm": (
        _model(_A, "uint8[4,2] y",
               f"{_X}, int8[2,6] w = {{10, -20, 33, 4, 50, -66, 127, -127, 1, 2, 3, 4}}, "
               f"{_PER_CHANNEL}, int32[2] c = {{900, -77}}",
               "y = com.microsoft.QGemm <transB: int = 1, alpha: float = 0.5> "
               "(a, xs, xz, w, ws, wz, c, ys, yz)"),
        {"DequantizeLinear": 3, "Gemm": 1, "QuantizeLinear": 1},
        {"QGemm": 1},
    ),
    "gemm to float": (
        _model(_A, "float[4,2] y", f"{_X}, {_MATRIX}, {_PER_TENSOR}",
               "y = com.microsoft.QGemm (a, xs, xz, w, ws, wz)"),
        {"DequantizeLinear": 2, "Gemm": 1},
        {"MatMulIntegerToFloat": 1},
    ),
    "integer product, scaled": (
        _model(_A, "float[4,2] y", f"{_X}, {_MATRIX}, {_PER_TENSOR}, float[2] s = {{0.5, 0.3}}",
               "m = MatMulInteger (a, w, xz, wz) f = Cast <to: int = 1> (m) y = Mul (f, s)"),
        {"DequantizeLinear": 2, "MatMul": 1},
        {"MatMulIntegerToFloat": 1},
    ),
    "integer convolution, scaled and rounded": (
        _model(_IMAGE, _CONV_OUT, f"{_X}, uint8[2,3,1,1] w = {{100, 70, 123, 94, 140, 24}}, "
               "uint8 wz = {90}, float[2,1,1] s = {0.0005, 0.0003}",  # 1.23 runs no int8 ones
               "m = ConvInteger (a, w, xz, wz) f = Cast <to: int = 1> (m) r = Mul (s, f) "
               "y = QuantizeLinear (r, ys, yz)"),
        {"DequantizeLinear": 2, "Conv": 1, "QuantizeLinear": 1},
        {"QLinearConv": 1},
    ),
    "sum": (
        _model(f"{_A}, {_B}", "uint8[4,6] y", _X,
               "y = com.microsoft.QLinearAdd (a, xs, xz, b, ys, yz, ys, yz)"),
        {"DequantizeLinear": 2, "Add": 1, "QuantizeLinear": 1},
        {"QLinearAdd": 1},
    ),
    "product of elements": (
        _model(f"{_A}, {_B}", "uint8[4,6] y", _X,
               "y = com.microsoft.QLinearMul (a, xs, xz, b, ys, yz, ys, yz)"),
        {"DequantizeLinear": 2, "Mul": 1, "QuantizeLinear": 1},
        {},
    ),
    "sigmoid": (
        _model(_A, "uint8[4,6] y", f"{_X}, float s = {{0.00390625}}, uint8 z = {{0}}",
               "y = com.microsoft.QLinearSigmoid (a, xs, xz, s, z)"),
        {"DequantizeLinear": 1, "Sigmoid": 1, "QuantizeLinear": 1},
        {},
    ),
    "leaky relu": (
        _model(_A, "uint8[4,6] y", _X,
               "y = com.microsoft.QLinearLeakyRelu <alpha: float = 0.1> (a, xs, xz, ys, yz)"),
        {"DequantizeLinear": 1, "LeakyRelu": 1, "QuantizeLinear": 1},
        {},
    ),
    "choice": (
        _model(f"bool[4,6] k, {_A}, {_B}", "uint8[4,6] y", _X,
               "y = com.microsoft.QLinearWhere (k, a, xs, xz, b, ys, yz, ys, yz)"),
        {"DequantizeLinear": 2, "Where": 1, "QuantizeLinear": 1},
        {},
    ),
    "concatenation": (
        _model(f"{_A}, {_B}", "uint8[4,12] y", _X,
               "y = com.microsoft.QLinearConcat <axis: int = 1> (ys, yz, a, xs, xz, b, ys, yz)"),
        {"DequantizeLinear": 2, "Concat": 1, "QuantizeLinear": 1},
        {},
    ),
    "softmax": (
        _model(_A, "uint8[4,6] y", f"{_X}, float s = {{0.00390625}}, uint8 z = {{0}}",
               "y = com.microsoft.QLinearSoftmax <axis: int = 1, opset: int = 11> "
               "(a, xs, xz, s, z)"),
        {"DequantizeLinear": 1, "Softmax": 1, "QuantizeLinear": 1},
        {},
    ),
    "softmax as its kernel rounds it": (
        _model(_A, "uint8[4,6] y", f"{_X}, float s = {{0.003921569}}, uint8 z = {{0}}",
               "y = com.microsoft.QLinearSoftmax <axis: int = -1, opset: int = 13> "
               "(a, xs, xz, s, z)"),
        {"DequantizeLinear": 1, "Softmax": 1, "QuantizeLinear": 1},
        {"QLinearSoftmax": 1},
    ),
    "average": (
        _model(_IMAGE, "uint8[2,3,4,3] y", _X,
               "y = com.microsoft.QLinearAveragePool <kernel_shape: ints = [2, 2]> "
               "(a, xs, xz, xs, xz)"),
        {"DequantizeLinear": 1, "AveragePool": 1, "QuantizeLinear": 1},
        {},
    ),
    "average of all": (
        _model(_IMAGE, "uint8[2,3,1,1] y", _X,
               "y = com.microsoft.QLinearGlobalAveragePool (a, xs, xz, ys, yz)"),
        {"DequantizeLinear": 1, "GlobalAveragePool": 1, "QuantizeLinear": 1},
        {},
    ),
    "edges of com.microsoft": (
        _model("float[4,6] r", "float[4,6] y", _X,
               "q = com.microsoft.QuantizeLinear (r, xs, xz) "
               "y = com.microsoft.DequantizeLinear (q, xs, xz)"),
        {"QuantizeLinear": 1, "DequantizeLinear": 1},
        {"QuantizeLinear": 1, "DequantizeLinear": 1},
    ),
}  # fmt: skip
"""A model, the operators it is lifted to, and what the fold makes of them again."""


def _census(model: ir.Model) -> Counter[str]:
    names = (node.op_type for node in model.graph.all_nodes() if node.op_type != "Constant")
    return Counter(names)


def _feed(model: ir.Model, seed: int = 0) -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(seed)
    feed: dict[str, np.ndarray] = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        assert value.name is not None
        shape = value.shape.numpy()
        if value.dtype == ir.DataType.FLOAT:
            feed[value.name] = numbers.standard_normal(shape).astype(np.float32)
        else:
            assert value.dtype is not None
            feed[value.name] = numbers.integers(0, 256, shape).astype(value.dtype.numpy())
    return feed


def _steps(first: np.ndarray, second: np.ndarray) -> float:
    """The largest difference, in codes; a float result only rounds."""
    difference = np.abs(first.astype(np.float64) - second.astype(np.float64))
    if first.dtype.kind == "f":
        return float(np.max(difference / (1e-6 * np.max(np.abs(first)))))
    return float(np.max(difference))


@pytest.mark.parametrize("case", CASES)
def test_an_operator_is_lifted_to_the_real_one(
    case: str,
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    evaluate: Callable[..., dict[str, Any]],
) -> None:
    text, lifted, _ = CASES[case]
    model = parse(text)
    result = apply_pass("lift-qoperator", model)
    assert not result.remarks
    assert _census(model) == lifted
    assert not any(node.domain for node in model.graph)
    feed = _feed(model)
    before, after = evaluate(parse(text), feed)["y"], evaluate(model, feed)["y"]
    assert before.dtype == after.dtype
    assert _steps(before, after) <= 1


@pytest.mark.parametrize("target", ["ort", "standard", "integer", "qdq"])
@pytest.mark.parametrize("case", CASES)
def test_lifted_operators_fold_again_within_the_contract(
    case: str, target: str, parse: Callable[..., ir.Model], evaluate: Callable[..., dict[str, Any]]
) -> None:
    text, _, folded = CASES[case]
    model = parse(text)
    feeds = [_feed(model, seed) for seed in range(8)]
    gate = ContractGate(feeds, region_check=check_integer_contract)
    passes = parse_passes(f"lift-qoperator,infer-shapes,fold-qdq{{target={target}}}")
    Pipeline(passes, (gate,)).run(model)
    assert all(each.verdict.passed for each in gate.evidence)
    census = _census(model)
    if target == "ort":
        assert {op_type: census[op_type] for op_type in folded} == folded
    else:
        assert not any(node.domain for node in model.graph)
    if target == "qdq":
        assert census["DequantizeLinear"] >= 1
    for feed in feeds[:2]:
        assert _steps(evaluate(parse(text), feed)["y"], evaluate(model, feed)["y"]) <= 1


def test_one_dequantize_serves_all_readers_and_names_stay(
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    assert_text: Callable[[ir.Model, str], None],
) -> None:
    text = _model(
        _A, "uint8[4,6] y", _X,
        "t = com.microsoft.QLinearAdd (a, xs, xz, a, xs, xz, ys, yz) "
        "y = com.microsoft.QLinearAdd (t, ys, yz, a, xs, xz, ys, yz)",
    )  # fmt: skip
    model = parse(text)
    result = apply_pass("lift-qoperator", model)
    assert result.rules == {"lift-add": 2}
    for name in ("remove-dead-code", "deduplicate-initializers"):
        apply_pass(name, model)
    assert_text(
        model,
        """g (uint8[4,6] a) => (uint8[4,6] y)
        <float scale = {0.02}, uint8 zero_point = {120},
         float scale_1 = {0.05}, uint8 zero_point_1 = {131}>
        {
          a_real = DequantizeLinear (a, scale, zero_point)
          t_add = Add (a_real, a_real)
          t = QuantizeLinear (t_add, scale_1, zero_point_1)
          t_real = DequantizeLinear (t, scale_1, zero_point_1)
          y_add = Add (t_real, a_real)
          y = QuantizeLinear (y_add, scale_1, zero_point_1)
        }""",
    )


def test_scales_of_an_integer_product_are_split_exactly(
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    evaluate: Callable[..., dict[str, Any]],
) -> None:
    """The data keeps the scale it was quantized with, where the product then is the same."""
    body = (
        "q = QuantizeLinear (r, xs, xz) m = MatMulInteger (q, w, xz, wz) "
        "f = Cast <to: int = 1> (m) y = Mul (f, s)"
    )
    found: list[float] = []
    for factor in ("0.0002", "0.00033"):
        text = _model("float[4,6] r", "float[4,2] y", f"{_X}, {_MATRIX}, {_PER_TENSOR}, "
                      f"float s = {{{factor}}}", body)  # fmt: skip
        model = parse(text)
        apply_pass("lift-qoperator", model)
        scales: list[np.float32] = []
        for node in model.graph:
            if node.op_type == "DequantizeLinear":
                scale = node.inputs[1]
                assert scale is not None
                assert scale.const_value is not None
                scales.append(np.float32(scale.const_value.numpy().item()))
        assert scales[0] * scales[1] == np.float32(factor)
        found.append(float(scales[0]))
        feed = _feed(model)
        before, after = evaluate(parse(text), feed)["y"], evaluate(model, feed)["y"]
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
    assert found == [float(np.float32(0.02)), 1.0]


STAYING = {
    "computed scale": (
        _model(f"{_IMAGE}, float xs", _CONV_OUT,
               f"{_CONV_W}, {_PER_TENSOR}, uint8 xz = {{120}}, float ys = {{0.05}}, "
               "uint8 yz = {131}",
               "y = QLinearConv (a, xs, xz, w, ws, wz, ys, yz)"),
        "computed at run time",
    ),
    "dynamic quantization": (
        _model("float[4,6] r", "float[4,2] y", f"{_MATRIX}, {_PER_TENSOR}",
               "q, s, z = DynamicQuantizeLinear (r) m = MatMulInteger (q, w, z, wz) "
               "f = Cast <to: int = 1> (m) t = Mul (s, ws) y = Mul (f, t)"),
        "its scale is computed at run time",
    ),
    "zero points that differ": (
        _model(_IMAGE, _CONV_OUT, f"{_X}, {_CONV_W}, float[2] ws = {{0.01, 0.02}}, "
               "int8[2] wz = {-127, 125}",
               "y = QLinearConv (a, xs, xz, w, ws, wz, ys, yz)"),
        "different zero points per channel",
    ),
    "channels last": (
        _model("uint8[2,5,4,3] a", "uint8[2,1,1,3] y", _X,
               "y = com.microsoft.QLinearGlobalAveragePool <channels_last: int = 1> "
               "(a, xs, xz, ys, yz)"),
        "channels-last",
    ),
    "convolution of every other pixel, channels last": (
        _model("uint8[2,5,4,3] a", "uint8[2,3,2,2] y", f"{_X}, {_CONV_W}, {_PER_CHANNEL}",
               "y = com.microsoft.QLinearConv <channels_last: int = 1, strides: ints = [2, 2]> "
               "(a, xs, xz, w, ws, wz, ys, yz)"),
        "channels-last",
    ),
    "softmax over several axes": (
        _model("uint8[2,3,4] a", "uint8[2,3,4] y", _X,
               "y = com.microsoft.QLinearSoftmax <axis: int = 1, opset: int = 11> "
               "(a, xs, xz, ys, yz)"),
        "another opset",
    ),
    "per channel before opset 13": (
        _model(_IMAGE, _CONV_OUT, f"{_X}, {_CONV_W}, {_PER_CHANNEL}",
               "y = QLinearConv (a, xs, xz, w, ws, wz, ys, yz)", opset=12),
        "needs opset 13",
    ),
    "integer convolution nobody rounds": (
        _model(_IMAGE, "float[2,2,5,4] y", f"{_X}, {_CONV_W}, {_PER_TENSOR}",
               "m = ConvInteger (a, w, xz, wz) f = Cast <to: int = 1> (m) y = Mul (f, ws)"),
        "not rounded",
    ),
    "scales along another axis": (
        _model(_IMAGE, _CONV_OUT, f"{_X}, {_CONV_W}, {_PER_TENSOR}, "
               "float[4] s = {0.1, 0.2, 0.3, 0.4}",
               "m = ConvInteger (a, w, xz, wz) f = Cast <to: int = 1> (m) r = Mul (f, s) "
               "y = QuantizeLinear (r, ys, yz)"),
        "another axis",
    ),
    "several scales of the data": (
        _model(_A, "uint8[4,2] y", f"{_X}, {_MATRIX}, {_PER_TENSOR}, "
               "float[4] as = {0.1, 0.2, 0.3, 0.4}, uint8[4] az = {1, 2, 3, 4}",
               "y = QLinearMatMul (a, as, az, w, ws, wz, ys, yz)"),
        "several scales",
    ),
    "bias computed at run time": (
        _model(f"{_A}, int32[2] c", "uint8[4,2] y", f"{_X}, {_MATRIX}, {_PER_TENSOR}",
               "y = com.microsoft.QGemm (a, xs, xz, w, ws, wz, c, ys, yz)"),
        "its bias is computed",
    ),
}  # fmt: skip
"""A model that stays as it is, and what the remark says."""


@pytest.mark.parametrize("case", STAYING)
def test_what_has_no_exact_form_stays_with_a_reason(
    case: str,
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    assert_text: Callable[[ir.Model, str], None],
) -> None:
    text, reason = STAYING[case]
    model = parse(text)
    result = apply_pass("lift-qoperator", model)
    assert not result.modified
    assert_text(model, text)
    (remark,) = result.remarks
    assert reason in remark.reason


def test_codes_that_ai_onnx_has_not_yet_stay_in_their_domain_with_a_shape(
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    assert_text: Callable[[ir.Model, str], None],
) -> None:
    text = _model("float[4,6] r", "float[4,6] y", "float xs = {0.02}, uint16 z = {120}",
                  "q = com.microsoft.QuantizeLinear (r, xs, z) "
                  "y = com.microsoft.DequantizeLinear (q, xs, z)")  # fmt: skip
    model = parse(text)
    assert not apply_pass("lift-qoperator", model).remarks
    assert_text(model, text)
    codes = model.graph[0].outputs[0]
    assert codes.dtype == ir.DataType.UINT16
    assert codes.shape == (4, 6)


def test_an_operator_the_fold_has_no_rule_for_stays(
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("onnxfold.passes.fold.lift_qoperator.FOLD_RULES", {})
    model = parse(CASES["sum"][0])
    result = apply_pass(LiftQoperator(), model)
    assert not result.modified
    assert "no integer rule for Add" in result.remarks[0].reason


def test_qdq_graphs_are_left_alone(
    parse: Callable[..., ir.Model], apply_pass: Callable[..., PassResult]
) -> None:
    model = parse(
        "g (float[2,3] r) => (float[2,3] y) <float s = {0.5}, uint8 z = {3}> "
        "{ q = QuantizeLinear (r, s, z) y = DequantizeLinear (q, s, z) }"
    )
    assert not apply_pass("lift-qoperator", model).modified


def test_bodies_are_lifted_too(
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    evaluate: Callable[..., dict[str, Any]],
) -> None:
    text = _model(
        f"{_A}, {_B}, bool k", "uint8[4,6] y", _X,
        """y = If (k) <
             then_branch = t () => (uint8[4,6] ty) {
               ty = com.microsoft.QLinearAdd (a, xs, xz, b, ys, yz, ys, yz)
             },
             else_branch = e () => (uint8[4,6] ey) { ey = Identity (a) }
           >""",
    )  # fmt: skip
    model = parse(text)
    apply_pass("lift-qoperator", model)
    assert _census(model)["QLinearAdd"] == 0
    assert _census(model)["Add"] == 1
    for choice in (True, False):
        feed = {**_feed(model), "k": np.array(choice)}
        np.testing.assert_array_equal(evaluate(model, feed)["y"], evaluate(parse(text), feed)["y"])


def test_the_fold_preset_lifts() -> None:
    assert "lift-qoperator" in FOLD.split(",")
