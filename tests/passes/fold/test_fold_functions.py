"""Functions of one quantized value become tables: every code is what the float ops round to."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.constants import constant_array
from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.passes.fold.numerics import ELEMENTWISE
from onnxfold.passes.fold.rules.functions import MOST_NODES
from onnxfold.runtime.session import DEPLOYMENT, Session

Target = Literal["ort", "standard", "integer", "qdq"]
Folded = tuple[ir.Model, ir.Model, PassResult]

# Nodes from x to c on x [1,3,16,16], and constants.
UNARY = {
    "Abs": "c = Abs (x)",
    "Atan": "c = Atan (x)",
    "Ceil": "c = Ceil (x)",
    "Celu": "c = Celu <alpha = 0.7> (x)",
    "Cos": "c = Cos (x)",
    "Elu": "c = Elu <alpha = 0.7> (x)",
    "Erf": "c = Erf (x)",
    "Exp": "c = Exp (x)",
    "Floor": "c = Floor (x)",
    "Gelu": "c = Gelu (x)",
    "Gelu, tanh": 'c = Gelu <approximate = "tanh"> (x)',
    "HardSigmoid": "c = HardSigmoid <alpha = 0.17> (x)",
    "HardSwish": "c = HardSwish (x)",
    "LeakyRelu": "c = LeakyRelu <alpha = 0.1> (x)",
    "Mish": "c = Mish (x)",
    "Neg": "c = Neg (x)",
    "Reciprocal": "c = Reciprocal (x)",
    "Round": "c = Round (x)",
    "Selu": "c = Selu (x)",
    "Shrink": "c = Shrink <bias = 0.3, lambd = 0.4> (x)",
    "Sigmoid": "c = Sigmoid (x)",
    "Sign": "c = Sign (x)",
    "Sin": "c = Sin (x)",
    "Softplus": "c = Softplus (x)",
    "Softsign": "c = Softsign (x)",
    "Tanh": "c = Tanh (x)",
    "ThresholdedRelu": "c = ThresholdedRelu <alpha = 0.4> (x)",
}
_EQUAL = ", ".join(["0.7"] * 48)
CONSTANTS = (
    "float half = {0.5}, float third = {0.33}, float low = {-0.33}, float three = {3.0},"
    " float six = {6.0}, float one = {1.0}, float zero = {0.0}, float root = {1.4142135},"
    " int64 two = {2}, float[1,3,1,1] k = {0.3, -1.2, 0.01}, float[3,1,1] slope = {0.1, 0.2, 0.0},"
    f" float[1,1,1,1] one4 = {{1.0}}, float[3,16,1] equal = {{{_EQUAL}}}"
)
SEVERAL = {
    "Pow": "c = Pow (x, two)",
    "Pow, base": "c = Pow (half, x)",
    "constant - x": "m = Mul (x, k) c = Sub (third, m)",
    "constant / x": "c = Div (third, x)",
    "Sum": "c = Sum (x, x, k)",
    "Mean": "c = Mean (x, k, third)",
    "Max": "c = Max (x, low)",
    "Max, channels": "c = Max (x, slope, third)",
    "Min": "c = Min (low, x)",
    "Clip": "c = Clip (x, low, third)",
    "Clip, one bound": "c = Clip (x, , third)",
    "PRelu": "c = PRelu (x, third)",
    "PRelu, channels": "c = PRelu (x, slope)",
    "Add, channels": "c = Add (k, x)",
    "Mul, channels": "c = Mul (x, k)",
    "Div, channels": "c = Div (x, k)",
    "full constant of equal elements": "e = Erf (x) c = Mul (e, equal)",
    "constant of one element": "e = Erf (x) c = Mul (e, one4)",
    "Where": "g = Greater (x, zero) m = Mul (x, third) c = Where (g, x, m)",
    "Where of bounds": "g = Less (x, low) o = Not (g) a = Abs (x) c = Where (o, a, three)",
    "And": "g = Less (x, low) h = LessOrEqual (x, third) i = And (g, h) j = Xor (i, h)"
    " c = Where (j, x, zero)",
    "SiLU": "h = Sigmoid (x) c = Mul (h, x)",
    "HardSwish, written out": "a = Add (x, three) b = Clip (a, zero, six) m = Mul (x, b)"
    " c = Div (m, six)",
    "GELU": "d = Div (x, root) e = Erf (d) a = Add (e, one) m = Mul (x, a) c = Mul (m, half)",
    "LeakyRelu of Max": "m = Mul (x, third) c = Max (x, m)",
    "square behind Relu": "r = Relu (x) a = Add (r, x) c = Mul (a, r)",
    "log of a clipped": "m = Clip (x, one, ) c = Log (m)",
    "root behind Relu": "m = Relu (x) c = Sqrt (m)",
}
CASES = {**UNARY, **SEVERAL}
_TYPES = {"uint8": ("uint8", 120), "int8": ("int8", -7)}


def _text(body: str, kind: str = "uint8", more: str = "", outputs: str = "") -> str:
    dtype, zero = _TYPES[kind]
    return (
        f"agraph ({dtype}[1,3,16,16] q) => ({dtype}[1,3,16,16] y{outputs})"
        f" <float s = {{0.03}}, {dtype} z = {{{zero}}}, float t = {{0.013}}, {CONSTANTS}>"
        f" {{ x = DequantizeLinear (q, s, z) {body} y = QuantizeLinear (c, t, z) {more} }}"
    )


def _inferred(model: ir.Model) -> ir.Model:
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model), strict_mode=True))


def _every_code(kind: str) -> dict[str, np.ndarray]:
    dtype = np.dtype(_TYPES[kind][0])
    codes = np.arange(256).reshape(1, 1, 16, 16) + np.iinfo(dtype).min
    return {"q": np.repeat(codes, 3, axis=1).astype(dtype)}


@pytest.fixture
def folded(
    parse: Callable[..., ir.Model], apply_pass: Callable[..., PassResult]
) -> Callable[..., Folded]:
    """``folded(text, target)``: the model, the folded model, and what the fold did."""

    def fold(text: str, target: Target = "standard", opset: int = 21) -> Folded:
        before, model = (_inferred(parse(text, opset)) for _ in range(2))
        return before, model, apply_pass(FoldQdq(target), model)

    return fold


def _assert_same(before: ir.Model, model: ir.Model, feed: Any, evaluate: Any, off: int = 0) -> None:
    """Equal codes, but for ``off`` elements that are off by one."""
    wanted = evaluate(before, feed)
    for found in (evaluate(model, feed), Session(model, DEPLOYMENT).run(feed)):
        for name, value in wanted.items():
            difference = np.abs(found[name].astype(np.float64) - value)
            assert difference.max() <= (1 if off else 0), name
            assert np.count_nonzero(difference) <= off, name


@pytest.mark.parametrize("kind", _TYPES)
@pytest.mark.parametrize("case", CASES)
def test_every_code_is_looked_up(
    case: str, kind: str, folded: Callable[..., Folded], evaluate: Callable[..., Any]
) -> None:
    before, model, result = folded(_text(CASES[case], kind))
    assert result.rules["fold-function"] + result.rules["fold-sum"] == 1
    assert not result.remarks
    assert all(output.dtype != ir.DataType.FLOAT for node in model.graph for output in node.outputs)
    _assert_same(before, model, _every_code(kind), evaluate)


def test_all_unary_ops_are_tested() -> None:
    constants = {"And", "Equal", "Greater", "GreaterOrEqual", "Or", "Sum", "Swish", "Relu", "Sub"}
    domain = {"Acos", "Acosh", "Asin", "Asinh", "Atanh", "Cosh", "Sinh", "Tan"}
    tested = " ".join(CASES.values())
    assert {op for op in ELEMENTWISE if f"= {op} " not in tested} <= constants | domain


def test_numbers_of_ops_that_no_older_runtime_has() -> None:
    x = np.linspace(-3, 3, 7, dtype=np.float32)
    swish = ir.node("Swish", [ir.Value(name="x")], {"alpha": 2.0})
    np.testing.assert_allclose(
        ELEMENTWISE["Swish"](swish, [x]), x / (1 + np.exp(-2 * x)), rtol=1e-6
    )


def test_the_table_is_written_as_a_gather(
    parse: Callable[..., ir.Model],
    assert_text: Callable[[ir.Model, str], None],
    apply_pass: Callable[..., PassResult],
) -> None:
    model = parse(
        "agraph (uint8[2,3] q) => (uint8[2,3] y) <float s = {0.5}, uint8 z = {128}>"
        " { x = DequantizeLinear (q, s, z) a = Abs (x) n = Neg (a)"
        " y = QuantizeLinear (n, s, z) }"
    )
    result = apply_pass(FoldQdq("standard"), model)
    table = ", ".join(str(128 - abs(code - 128)) for code in range(256))
    assert_text(
        model,
        f"agraph (uint8[2,3] q) => (uint8[2,3] y) <uint8[256] table = {{{table}}}>"
        " { n_cast = Cast <to = 6> (q) y = Gather (table, n_cast) }",
    )
    assert result.rules["fold-function"] == 1


def test_one_table_a_channel(folded: Callable[..., Folded]) -> None:
    _, model, result = folded(
        "agraph (int8[4,2,5] q) => (int8[4,2,5] y)"
        " <float s = {0.5}, int8 z = {0}, float[2,1] k = {1.0, -1.0}>"
        " { x = DequantizeLinear (q, s, z) m = Mul (x, k) y = QuantizeLinear (m, s, z) }"
    )
    (gather,) = [node for node in model.graph if node.op_type == "Gather"]
    entries = constant_array(gather.inputs[0])
    assert entries is not None
    kept, negated = np.arange(-128, 128), np.minimum(-np.arange(-128, 128), 127)
    # Held as uint8 in between.
    np.testing.assert_array_equal(entries.reshape(2, 256).astype(int) - 128, [kept, negated])
    assert result.rules["fold-function"] == 1


def test_what_others_read_stays_float_beside_the_table(
    folded: Callable[..., Folded], evaluate: Callable[..., Any]
) -> None:
    text = _text(
        "h = Sigmoid (x) c = Mul (h, x)",
        outputs=", float[1,3,16,16] h, uint8[1,3,16,16] w",
        more="e = Exp (h) w = QuantizeLinear (e, t, z)",
    )
    before, model, result = folded(text)
    assert result.rules["fold-function"] == 2
    census = [node.op_type for node in model.graph]
    assert census.count("GatherElements") == 2
    assert census.count("Sigmoid") == 1
    assert not {"Mul", "Exp", "QuantizeLinear"} & set(census)
    _assert_same(before, model, _every_code("uint8"), evaluate)


@pytest.mark.parametrize("kind", _TYPES)
@pytest.mark.parametrize("target", ["standard", "integer", "ort", "qdq"])
def test_one_value_rounded_in_several_ways(
    kind: str, target: Target, folded: Callable[..., Folded], evaluate: Callable[..., Any]
) -> None:
    dtype = _TYPES[kind][0]
    text = _text(
        "c = Sigmoid (x)",
        kind,
        outputs=f", {dtype}[1,3,16,16] w, float[1,3,16,16] v",
        more="w = QuantizeLinear (c, s, z) d = DequantizeLinear (w, s, z) v = Exp (d)",
    )
    before, model, result = folded(text, target)
    if target in ("standard", "integer"):
        assert result.rules["fold-function"] == 2
        assert not {"Sigmoid", "QuantizeLinear"} & {node.op_type for node in model.graph}
        names = {output.name for node in model.graph for output in node.outputs}
        assert {"y", "w"} | ({"y_u8", "w_u8"} if kind == "int8" else set()) <= names
    wanted, found = evaluate(before, _every_code(kind)), evaluate(model, _every_code(kind))
    for name in ("y", "w"):
        np.testing.assert_array_equal(found[name], wanted[name])


def test_a_clamp_in_the_middle_serves_its_other_reader(
    folded: Callable[..., Folded], evaluate: Callable[..., Any]
) -> None:
    text = _text(
        "r = Relu (x) a = Sub (r, x) c = Exp (a)",
        outputs=", uint8[1,3,16,16] w",
        more="w = QuantizeLinear (r, s, z)",
    )
    before, model, result = folded(text)
    assert result.rules["fold-function"] == 1
    assert result.rules["fold-clamp"] == 1
    assert not result.remarks
    _assert_same(before, model, _every_code("uint8"), evaluate)


def test_absent_zero_points(folded: Callable[..., Folded], evaluate: Callable[..., Any]) -> None:
    before, model, result = folded(
        "agraph (uint8[1,3,16,16] q) => (uint8[1,3,16,16] y) <float s = {0.03}, float t = {0.01}>"
        " { x = DequantizeLinear (q, s) c = Tanh (x) y = QuantizeLinear (c, t) }"
    )
    assert result.rules["fold-function"] == 1
    _assert_same(before, model, _every_code("uint8"), evaluate)


def test_captured_codes_in_a_branch(
    folded: Callable[..., Folded], evaluate: Callable[..., Any]
) -> None:
    before, model, result = folded(
        "agraph (uint8[1,3,16,16] q, bool p) => (uint8[1,3,16,16] y)"
        " <float s = {0.03}, uint8 z = {120}, float t = {0.01}>"
        " { x = DequantizeLinear (q, s, z) f = Erf (x) y = If (p) <then_branch = g1 () =>"
        " (uint8[1,3,16,16] a) { e = Exp (x) m = Mul (e, x) a = QuantizeLinear (m, t, z) },"
        " else_branch = g2 () => (uint8[1,3,16,16] b)"
        " { n = Neg (f) b = QuantizeLinear (n, t, z) }> }"
    )
    assert result.rules["fold-function"] == 1
    bodies = [each.as_graph() for node in model.graph for each in node.attributes.values()]
    assert [[node.op_type for node in body] for body in bodies] == [
        ["Cast", "Reshape", "GatherElements", "Reshape"],
        ["Neg", "QuantizeLinear"],
    ]
    for branch in (True, False):
        feed = {**_every_code("uint8"), "p": np.array(branch)}
        _assert_same(before, model, feed, evaluate)


_FLOAT_FORMS = {
    "two axes": ("c = Mul (x, k)", "float[1,3,16,1] k", np.arange(48), "1,3,16,16"),
    "broadcasts": ("c = Mul (x, k)", "float[2,3,16,16] k", np.full(1536, 2), "2,3,16,16"),
    "several operands": ("e = Sigmoid (v) c = Mul (e, x)", "float v", np.ones(1), "1,3,16,16"),
}


@pytest.mark.parametrize("case", _FLOAT_FORMS)
def test_no_table_for_what_is_no_function_of_one_element(
    case: str,
    folded: Callable[..., Folded],
    evaluate: Callable[..., Any],
) -> None:
    body, constant, numbers, shape = _FLOAT_FORMS[case]
    listed = ", ".join(f"{each}.0" for each in numbers.astype(int))
    before, model, result = folded(
        f"agraph (uint8[1,3,16,16] q) => (uint8[{shape}] y) <float s = {{0.03}},"
        f" uint8 z = {{120}}, float t = {{0.013}}, {constant} = {{{listed}}}>"
        f" {{ x = DequantizeLinear (q, s, z) {body} y = QuantizeLinear (c, t, z) }}"
    )
    assert result.rules["fold-function"] == 0
    _assert_same(before, model, _every_code("uint8"), evaluate)


def test_constants_beside_a_tensor_of_unknown_rank(parse: Callable[..., ir.Model]) -> None:
    text = (
        "agraph (uint8[4] q) => (uint8[4] y) <float s = {0.5}, uint8 z = {120}, %s>"
        " { x = DequantizeLinear (q, s, z) m = Mul (x, k) c = Exp (m)"
        " y = QuantizeLinear (c, s, z) }"
    )
    for constant, tables in (("float k = {-1.5}", 1), ("float[1] k = {-1.5}", 0)):
        model = parse(text % constant)
        model.graph.inputs[0].shape = model.graph.outputs[0].shape = None
        assert FoldQdq("standard").run(model).rules["fold-function"] == tables


def test_a_channel_of_unknown_size_may_be_one(folded: Callable[..., Folded]) -> None:
    _, _, result = folded(
        "agraph (uint8[1,C,4,4] q) => (uint8[1,3,4,4] y)"
        " <float s = {0.5}, uint8 z = {120}, float[3,1,1] k = {0.1, 0.2, 0.3}>"
        " { x = DequantizeLinear (q, s, z) c = Mul (x, k) y = QuantizeLinear (c, s, z) }"
    )
    assert result.rules["fold-function"] == 0


@pytest.mark.parametrize(
    ("target", "reason"), [("ort", "slower than the float one (measured)"), ("qdq", "canonical")]
)
def test_targets_that_take_no_table_keep_the_float_op(
    target: Target, reason: str, folded: Callable[..., Folded], evaluate: Callable[..., Any]
) -> None:
    before, model, result = folded(_text(SEVERAL["GELU"]), target)
    assert result.rules["fold-function"] == 0
    assert [node.op_type for node in model.graph] == [
        "DequantizeLinear", "Div", "Erf", "Add", "Mul", "Mul", "QuantizeLinear",
    ]  # fmt: skip
    assert any(reason in remark.reason for remark in result.remarks)
    _assert_same(before, model, _every_code("uint8"), evaluate)


def test_long_chains_are_not_followed(folded: Callable[..., Folded]) -> None:
    for length, tables in ((MOST_NODES, 1), (MOST_NODES + 1, 0)):
        names = ["x", *(f"v{i}" for i in range(length - 1)), "c"]
        chain = " ".join(f"{new} = Tanh ({old})" for old, new in pairwise(names))
        assert folded(_text(chain))[2].rules["fold-function"] == tables


_KERNELS = {
    "Sigmoid": ("c = Sigmoid (x)", "QLinearSigmoid", "t, z"),
    "Tanh of unit range": ("c = Tanh (x)", "QLinearSigmoid", "u, h"),
    "LeakyRelu": ("c = LeakyRelu <alpha = 0.1> (x)", "QLinearLeakyRelu", "t, z"),
    "LeakyRelu of Max": ("m = Mul (x, third) c = Max (x, m)", "QLinearLeakyRelu", "t, z"),
    "PRelu": ("c = PRelu (x, third)", "QLinearLeakyRelu", "t, z"),
    "Abs": ("c = Abs (x)", "QLinearLeakyRelu", "t, z"),
    "two slopes": ("m = Mul (x, half) a = Abs (x) c = Add (m, a)", "QLinearLeakyRelu", "t, z"),
    "Relu of another type": ("c = Relu (x)", "QLinearLeakyRelu", "t, z"),
    "HardSigmoid": ("c = HardSigmoid (x)", "QLinearAdd", "t, z"),
    "Clip of another type": ("c = Clip (x, low, third)", "QLinearAdd", "t, z"),
    "line": ("m = Mul (x, half) n = Add (m, third) c = Min (n, six)", "QLinearAdd", "t, z"),
    "Elu": ("c = Elu (x)", "GatherElements", "t, z"),
    "Mish": ("c = Mish (x)", "GatherElements", "t, z"),
    "PRelu, channels": ("c = PRelu (x, slope)", "GatherElements", "t, z"),
    "Pow": ("c = Pow (half, x)", "GatherElements", "t, z"),
    "Where": ("g = Greater (x, low) c = Where (g, x, third)", "GatherElements", "t, z"),
}  # fmt: skip


@pytest.mark.parametrize("kind", _TYPES)
@pytest.mark.parametrize("case", _KERNELS)
def test_kernels_of_onnxruntime_where_they_are_faster(
    case: str, kind: str, folded: Callable[..., Folded], evaluate: Callable[..., Any]
) -> None:
    body, kernel, parameters = _KERNELS[case]
    text = _text(body, kind).replace("(c, t, z)", f"(c, {parameters})")
    unit = f"float u = {{0.0078125}}, {kind} h = {{{128 if kind == 'uint8' else 0}}}, float t ="
    before, model, _ = folded(text.replace("float t =", unit), "ort")
    float_ops = {"Sigmoid", "Tanh", "LeakyRelu", "PRelu", "Abs", "Elu", "Mish", "Pow", "Where"}
    float_ops |= {"Relu", "HardSigmoid", "Min"}
    census = [node.op_type for node in model.graph]
    assert census.count(kernel) == 1
    assert not float_ops & set(census)
    _assert_same(before, model, _every_code(kind), evaluate)


_KEPT = {
    "Tanh of another range": "c = Tanh (x)",
    "x squared": "c = Pow (x, two)",
    "HardSwish": "c = HardSwish (x)",
    "negative slope above": "c = Neg (x)",
}


@pytest.mark.parametrize("case", _KEPT)
def test_kept_in_float_where_that_is_faster(
    case: str, folded: Callable[..., Folded], evaluate: Callable[..., Any]
) -> None:
    before, model, result = folded(_text(_KEPT[case]), "ort")
    assert result.rules["fold-function"] == 0
    assert [node.op_type for node in model.graph][::2] == ["DequantizeLinear", "QuantizeLinear"]
    assert "measured" in result.remarks[-1].reason
    _assert_same(before, model, _every_code("uint8"), evaluate)


def test_limits_that_saturation_implies_are_not_written(folded: Callable[..., Folded]) -> None:
    text = _text("c = HardSigmoid (x)").replace("(c, t, z)", "(c, u, h)")
    unit = "float u = {0.00390625}, uint8 h = {0}, float t ="
    for bound, census in (
        ("uint8 h = {0}", ["QLinearAdd"]),
        ("uint8 h = {1}", ["QLinearAdd", "Clip"]),
    ):
        model = text.replace("float t =", unit.replace("uint8 h = {0}", bound))
        assert [node.op_type for node in folded(model, "ort")[1].graph] == census


def test_codes_that_are_all_on_one_side_have_one_slope(folded: Callable[..., Folded]) -> None:
    _, model, _ = folded(
        "agraph (uint8[4] q) => (uint8[4] y) <float s = {0.5}, uint8 z = {0}, float t = {0.25}>"
        " { x = DequantizeLinear (q, s, z) c = Abs (x) y = QuantizeLinear (c, t, z) }",
        "ort",
    )
    (kernel,) = [node for node in model.graph if node.op_type == "QLinearLeakyRelu"]
    assert kernel.attributes.get_float("alpha") == 1.0
