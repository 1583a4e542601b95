"""Sums, products, and choices between several quantized values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.runtime.session import DEPLOYMENT, Session

Target = Literal["ort", "standard", "integer", "qdq"]
Folded = tuple[ir.Model, ir.Model, PassResult]

# a and b [2,3,4,8], d [3,1,1], e [8] are quantized, each at its own scale; c is the result.
_MATRIX = ", ".join(f"{number / 7:.3f}" for number in range(-16, 16))
CONSTANTS = (
    "float half = {0.5}, float third = {0.33}, float minus = {-0.7}, float[4,1] column ="
    f" {{0.1, -0.2, 0.3, 0.45}}, float[4,8] matrix = {{{_MATRIX}}}, float[1] one = {{0.37}},"
    " int8[8] w = {1, -2, 3, -4, 5, -6, 7, -8}, float sw = {0.11}"
)
SUMS = {
    "Add": ("c = Add (a, b)", 1),
    "Add, smaller operand": ("c = Add (d, a)", 1),
    "Add, both smaller": ("g = Add (d, e) c = Add (g, a)", 1),
    "Add, matrix": ("c = Add (a, matrix)", 1),
    "Add, dequantized constant": ("wf = DequantizeLinear (w, sw) c = Add (a, wf)", 1),
    "Sub": ("c = Sub (a, b)", 1),
    "Sub, smaller operand": ("c = Sub (e, a)", 1),
    "Sub, constant": ("c = Sub (a, third)", 1),
    "constant - a": ("c = Sub (third, a)", 1),
    "Sub, dequantized constant": ("wf = DequantizeLinear (w, sw) c = Sub (a, wf)", 1),
    "Sum": ("c = Sum (a, b, d, column)", 1),
    "Mean": ("c = Mean (a, b, e)", 1),
    "Mean of two": ("c = Mean (a, b)", 1),
    "chain": ("g = Add (a, b) h = Sub (g, d) c = Add (matrix, h)", 1),
    "scaled chain": ("g = Mul (a, minus) h = Neg (b) i = Add (g, h) c = Div (i, third)", 1),
    "doubled": ("g = Add (a, b) c = Add (g, a)", 1),
    "two readers": ("g = Add (a, b) h = Mul (g, minus) c = Sub (h, g)", 1),
}


def _text(body: str, dtype: str = "uint8", more: str = "", outputs: str = "") -> str:
    low = 0 if dtype == "uint8" else -128
    return (
        f"agraph ({dtype}[2,3,4,8] q, {dtype}[2,3,4,8] p, {dtype}[3,1,1] r, {dtype}[8] o,"
        f" bool[4,1] m, float[2,3,4,8] f) => ({dtype}[2,3,4,8] y{outputs})"
        f" <float s = {{0.0311}}, {dtype} z = {{{low + 120}}}, float t = {{0.0173}},"
        f" {dtype} u = {{{low + 33}}}, float v = {{0.0501}}, {dtype} x = {{{low + 99}}},"
        f" {CONSTANTS}>"
        " { a = DequantizeLinear (q, s, z) b = DequantizeLinear (p, t, u)"
        " d = DequantizeLinear (r, t, u) e = DequantizeLinear (o, v, x)"
        f" {body} y = QuantizeLinear (c, v, x) {more} }}"
    )


def _inferred(model: ir.Model) -> ir.Model:
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model), strict_mode=True))


def _feed(model: ir.Model) -> dict[str, Any]:
    numbers = np.random.default_rng(11)
    feed: dict[str, Any] = {}
    for value in model.graph.inputs:
        assert value.name is not None
        assert value.shape is not None
        assert value.dtype is not None
        dtype, shape = value.dtype.numpy(), value.shape.numpy()
        if dtype.kind in "iu":
            low = np.iinfo(dtype).min
            feed[value.name] = (numbers.integers(0, 256, shape) + low).astype(dtype)
        else:
            real = numbers.standard_normal(shape)
            feed[value.name] = real > 0 if dtype.kind == "b" else real.astype(dtype)
    return feed


@pytest.fixture
def folded(
    parse: Callable[..., ir.Model], apply_pass: Callable[..., PassResult]
) -> Callable[..., Folded]:
    """``folded(text, target)``: the model, the folded model, and what the fold did."""

    def fold(text: str, target: Target = "standard", opset: int = 21) -> Folded:
        before, model = (_inferred(parse(text, opset)) for _ in range(2))
        return before, model, apply_pass(FoldQdq(target), model)

    return fold


def _assert_same(before: ir.Model, model: ir.Model, evaluate: Any) -> None:
    feed = _feed(before)
    wanted = evaluate(before, feed)
    for found in (evaluate(model, feed), Session(model, DEPLOYMENT).run(feed)):
        for name, value in wanted.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def _assert_integer(model: ir.Model) -> None:
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in model.graph}
    assert all(output.dtype != ir.DataType.FLOAT for node in model.graph for output in node.outputs)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("target", ["standard", "integer"])
@pytest.mark.parametrize("case", SUMS)
def test_sums_are_rounded_once(
    case: str,
    target: Target,
    dtype: str,
    folded: Callable[..., Folded],
    evaluate: Callable[..., Any],
) -> None:
    body, count = SUMS[case]
    before, model, result = folded(_text(body, dtype), target)
    assert result.rules["fold-sum"] + result.rules["fold-function"] == count
    assert not result.remarks
    _assert_integer(model)
    _assert_same(before, model, evaluate)


_ORT_SUMS = {
    "Add": ["QLinearAdd"],
    "Add, smaller operand": ["QLinearAdd"],
    "Add, dequantized constant": ["QLinearAdd"],
    "Sub": ["BitwiseNot", "QLinearAdd"],
    "Sub, smaller operand": ["BitwiseNot", "QLinearAdd"],
    "Sub, constant": ["QLinearAdd"],
    "constant - a": ["BitwiseNot", "QLinearAdd"],
    "Sub, dequantized constant": ["QLinearAdd"],
    "two readers": ["BitwiseNot", "BitwiseNot", "QLinearAdd"],
    "Mean of two": ["QLinearAdd"],
    "scaled chain": ["BitwiseNot", "BitwiseNot", "QLinearAdd"],
    "doubled": ["QLinearAdd"],
}


@pytest.mark.parametrize("case", _ORT_SUMS)
def test_sums_of_two_are_one_kernel_of_onnxruntime(
    case: str, folded: Callable[..., Folded], evaluate: Callable[..., Any]
) -> None:
    before, model, result = folded(_text(SUMS[case][0]), "ort")
    assert result.rules["fold-sum"] == 1
    assert [node.op_type for node in model.graph] == _ORT_SUMS[case]
    _assert_same(before, model, evaluate)


def test_without_bitwise_not_codes_are_subtracted(
    folded: Callable[..., Folded], evaluate: Callable[..., Any]
) -> None:
    before, model, _ = folded(_text("c = Sub (a, b)"), "ort", opset=17)
    census = [node.op_type for node in model.graph]
    assert census == ["Cast", "Sub", "Cast", "QLinearAdd"]
    _assert_same(before, model, evaluate)


@pytest.mark.parametrize("case", [name for name in SUMS if name not in _ORT_SUMS])
@pytest.mark.parametrize("target", ["ort", "qdq"])
def test_other_sums_stay_float_where_no_kernel_is_faster(
    case: str, target: Target, folded: Callable[..., Folded], evaluate: Callable[..., Any]
) -> None:
    before, model, result = folded(_text(SUMS[case][0]), target)
    assert result.rules["fold-sum"] == 0
    reason = "measured" if target == "ort" else "canonical"
    assert reason in result.remarks[-1].reason
    _assert_same(before, model, evaluate)


def test_a_term_that_others_read_is_summed_twice(
    folded: Callable[..., Folded], evaluate: Callable[..., Any]
) -> None:
    text = _text(
        "g = Add (a, b) c = Add (g, d)",
        more="h = Sub (g, e) n = QuantizeLinear (h, s, z)",
        outputs=", uint8[2,3,4,8] n",
    )
    before, model, result = folded(text)
    assert result.rules["fold-sum"] == 2
    _assert_integer(model)
    _assert_same(before, model, evaluate)


def test_a_sum_rounded_in_several_ways(
    folded: Callable[..., Folded], evaluate: Callable[..., Any]
) -> None:
    text = _text(
        "c = Add (a, b)",
        more="h = Exp (c) n = QuantizeLinear (c, s, z)",
        outputs=", uint8[2,3,4,8] n, float[2,3,4,8] h",
    )
    before, model, result = folded(text)
    assert result.rules["fold-sum"] == 2
    assert "QuantizeLinear" not in {node.op_type for node in model.graph}
    _assert_same(before, model, evaluate)


def test_a_term_that_leaves_the_graph_stays_float(
    folded: Callable[..., Folded], evaluate: Callable[..., Any]
) -> None:
    text = _text("g = Add (a, b) c = Add (g, d)", outputs=", float[2,3,4,8] g")
    before, model, result = folded(text)
    assert result.rules["fold-sum"] == 1
    assert {"DequantizeLinear", "Add"} <= {node.op_type for node in model.graph}
    _assert_same(before, model, evaluate)


_REFUSED = {
    "quotient": ("c = Div (a, b)", "divides by a computed value"),
    "quotient of a constant": ("g = Div (half, b) c = Mul (a, g)", "'g' is not quantized"),
    "nothing left": ("g = Sub (a, a) c = Add (g, b)", "'g' is not quantized"),
    "infinite constant": ("g = Div (matrix, zero) c = Add (a, g)", "'g' is not quantized"),
    "power of two values": ("c = Pow (a, b)", "no integer form of Pow of several"),
    "real operand": ("c = Add (a, f)", "'f' is not quantized"),
}


@pytest.mark.parametrize("case", _REFUSED)
def test_no_integer_form(
    case: str, folded: Callable[..., Folded], evaluate: Callable[..., Any]
) -> None:
    body, reason = _REFUSED[case]
    text = _text(body).replace("float half", "float zero = {0.0}, float half")
    before, model, result = folded(text)
    assert any(reason in remark.reason for remark in result.remarks), result.remarks
    assert not result.rules["fold-sum"] + result.rules["fold-product"]
    if case != "power of two values":
        _assert_same(before, model, evaluate)


CHOICES = {
    "Max": ("c = Max (a, b)", "fold-extremum"),
    "Max, smaller operand": ("c = Max (e, a, d)", "fold-extremum"),
    "Max, constant": ("c = Max (a, b, matrix)", "fold-extremum"),
    "Min, real operand": ("c = Min (a, f)", "fold-extremum"),
    "Where": ("c = Where (m, a, b)", "fold-select"),
    "Where, constant": ("c = Where (m, column, a)", "fold-select"),
    "Where, real operand": ("c = Where (m, a, f)", "fold-select"),
    "bounds": ("g = Max (a, minus) c = Min (third, g)", "fold-function"),
}


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("target", ["standard", "integer", "ort", "qdq"])
@pytest.mark.parametrize("case", CHOICES)
def test_choices_commute_with_rounding(
    case: str,
    target: Target,
    dtype: str,
    folded: Callable[..., Folded],
    evaluate: Callable[..., Any],
) -> None:
    body, rule = CHOICES[case]
    before, model, result = folded(_text(body, dtype), target)
    if target in ("standard", "integer"):
        assert result.rules[rule] == 1
        assert not {"Dequantize"} & {node.op_type for node in model.graph}
    _assert_same(before, model, evaluate)


_EXACT = {
    "Max, one type": "g = DequantizeLinear (p, s, z) h = Max (a, g)",
    "Min, exact constant": "g = DequantizeLinear (p, s, z) h = Min (a, g, zero)",
    "Where, exact constant": "h = Where (m, a, zero)",
    "Relu by Max": "h = Max (zero, a)",
}


@pytest.mark.parametrize("case", _EXACT)
def test_choices_without_rounding_where_all_are_codes_of_one_type(
    case: str, folded: Callable[..., Folded], evaluate: Callable[..., Any]
) -> None:
    text = _text(
        f"{_EXACT[case]} c = Mul (h, b)",
        outputs=", float[2,3,4,8] k",
        more="k = Exp (h)",
    ).replace("float half", "float zero = {0.0}, float half")
    before, model, result = folded(text)
    names = {"fold-extremum", "fold-select", "fold-clamp"}
    assert sum(count for name, count in result.rules.items() if name in names) == 1
    assert result.rules["fold-product"] == 1
    _assert_same(before, model, evaluate)


def test_choices_without_rounding_need_one_type(folded: Callable[..., Folded]) -> None:
    text = _text("h = Max (a, b) c = Mul (h, b)", outputs=", float[2,3,4,8] k", more="k = Exp (h)")
    _, _, result = folded(text)
    assert result.rules["fold-extremum"] == 0
    reasons = {remark.op_type: remark.reason for remark in result.remarks}
    assert reasons["Mul"] == "'h' is not quantized"


def test_what_is_chosen_from_is_rounded_ahead(
    folded: Callable[..., Folded], evaluate: Callable[..., Any]
) -> None:
    """The producers of all operands round to the type that the result is rounded to."""
    text = _text("g = Add (a, b) h = Sub (a, b) i = Max (g, h) c = Where (m, i, e)")
    before, model, result = folded(text)
    assert result.rules["fold-sum"] == 2
    assert result.rules["fold-extremum"] == result.rules["fold-select"] == 1
    _assert_integer(model)
    _assert_same(before, model, evaluate)


def test_where_is_written_on_codes(
    parse: Callable[..., ir.Model],
    assert_text: Callable[[ir.Model, str], None],
    apply_pass: Callable[..., PassResult],
) -> None:
    model = parse(
        "agraph (uint8[2,3] q, bool[2,3] m) => (uint8[2,3] y)"
        " <float s = {0.5}, uint8 z = {100}, float k = {1.3}>"
        " { x = DequantizeLinear (q, s, z) c = Where (m, x, k) y = QuantizeLinear (c, s, z) }"
    )
    result = apply_pass(FoldQdq("ort"), model)
    assert_text(
        model,
        "agraph (uint8[2,3] q, bool[2,3] m) => (uint8[2,3] y) <uint8 operand_codes = {103}>"
        " { y = Where (m, q, operand_codes) }",
    )
    assert result.rules["fold-select"] == 1


def test_sub_is_an_addition_of_flipped_codes(
    parse: Callable[..., ir.Model],
    assert_text: Callable[[ir.Model, str], None],
    apply_pass: Callable[..., PassResult],
) -> None:
    model = parse(
        "agraph (uint8[2,3] q, uint8[2,3] p) => (uint8[2,3] y)"
        " <float s = {0.5}, uint8 z = {100}, float t = {0.25}, uint8 u = {7}>"
        " { a = DequantizeLinear (q, s, z) b = DequantizeLinear (p, t, u) c = Sub (a, b)"
        " y = QuantizeLinear (c, s, z) }"
    )
    result = apply_pass(FoldQdq("ort"), model)
    assert_text(
        model,
        "agraph (uint8[2,3] q, uint8[2,3] p) => (uint8[2,3] y)"
        " <float scale = {0.5}, uint8 zero_point = {100}, float scale_1 = {0.25},"
        " uint8 zero_point_1 = {248}>"
        " { p_bitwisenot = BitwiseNot (p) y = com.microsoft.QLinearAdd (q, scale, zero_point,"
        " p_bitwisenot, scale_1, zero_point_1, scale, zero_point) }",
    )
    assert result.rules["fold-sum"] == 1
