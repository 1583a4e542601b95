"""Fake-quantized regions inside branches, loops and local functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import FOLD, TIDY
from onnxfold.passes.registry import parse_passes

TARGETS = ("ort", "standard", "integer", "qdq")
_T = "float[1,2,4,4]"
# Products of these scales are no halves of codes: nothing ties.
_GRID = "float s = {0.0497}, uint8 z = {120}, float sw = {0.0203}"
_WEIGHTS = "int8[2,2,1,1] w = {9, -20, 33, 4}"
_INPUT = "q = QuantizeLinear (f, s, z) x = DequantizeLinear (q, s, z)"
_KERNEL = "k = DequantizeLinear (w, sw)"
_LAYER = "c = Conv (x, k) p = QuantizeLinear (c, s, z) {} = DequantizeLinear (p, s, z)"


def _if(then: str, otherwise: str, result: str = _T) -> str:
    return (
        f"If (on) <then_branch = t () => ({result} ty) {{ {then} }}, "
        f"else_branch = e () => ({result} ey) {{ {otherwise} }}>"
    )


_HEAD = f"g ({_T} f, bool on) => ({_T} y) <{_GRID}, {_WEIGHTS}>"
_LOOP = (
    f"g ({_T} f, int64 n) => ({_T} y, float[N,1,2,4,4] h) <{_GRID}, {_WEIGHTS}, bool on = {{1}}>"
)

BODIES: dict[str, str] = {
    "branches that capture codes and weights": (
        f"{_HEAD} {{ {_INPUT} {_KERNEL} y = "
        + _if(_LAYER.format("ty"), "a = Add (x, x) b = QuantizeLinear (a, s, z) "
              "ey = DequantizeLinear (b, s, z)")
        + " }"
    ),
    "weights dequantized in a branch of a branch": (
        f"{_HEAD} {{ {_INPUT} y = "
        + _if(f"ty = If (on) <then_branch = u () => ({_T} uy) {{ {_KERNEL} {_LAYER.format('uy')} }}"
              f", else_branch = v () => ({_T} vy) {{ vy = Identity (x) }}>", "ey = Identity (x)")
        + " }"
    ),
    "codes as the result of branches": (
        f"{_HEAD} {{ {_INPUT} {_KERNEL} o = "
        + _if("c = Conv (x, k) ty = QuantizeLinear (c, s, z)", "ey = Identity (q)",
              "uint8[1,2,4,4]")
        + " y = DequantizeLinear (o, s, z) }"
    ),
    "a real value quantized in the branch only": (
        f"{_HEAD} {{ r = Relu (f) {_KERNEL} y = "
        + _if("q = QuantizeLinear (r, s, z) x = DequantizeLinear (q, s, z) " + _LAYER.format("ty"),
              "ey = Identity (r)")
        + " }"
    ),
    "a loop with real state and a value an iteration": (
        f"{_LOOP} {{ {_KERNEL} y, h = Loop (n, on, f) <body = b (int64 i, bool go, {_T} st) => "
        f"(bool og, {_T} so, {_T} each) {{ og = Identity (go) q = QuantizeLinear (st, s, z) "
        f"x = DequantizeLinear (q, s, z) {_LAYER.format('so')} each = Identity (so) }}> }}"
    ),
    "a loop that carries codes": (
        f"g ({_T} f, int64 n) => ({_T} y) <{_GRID}, {_WEIGHTS}, bool on = {{1}}> "
        f"{{ {_KERNEL} q = QuantizeLinear (f, s, z) "
        "l = Loop (n, on, q) <body = b (int64 i, bool go, uint8[1,2,4,4] st) => "
        "(bool og, uint8[1,2,4,4] so) { og = Identity (go) x = DequantizeLinear (st, s, z) "
        "c = Conv (x, k) so = QuantizeLinear (c, s, z) }> y = DequantizeLinear (l, s, z) }"
    ),
    "a scan": (
        "g (float[2,2] f, float[5,2,2] items) => (float[2,2] y, float[5,2,2] h) "
        f"<{_GRID}, int8[2,2] w = {{9, -20, 33, 4}}> {{ {_KERNEL} "
        "y, h = Scan <num_scan_inputs: int = 1, body: graph = b (float[2,2] st, float[2,2] item) "
        "=> (float[2,2] so, float[2,2] each) { q = QuantizeLinear (item, s, z) "
        "x = DequantizeLinear (q, s, z) m = MatMul (x, k) n = QuantizeLinear (m, s, z) "
        "d = DequantizeLinear (n, s, z) r = QuantizeLinear (st, s, z) "
        "v = DequantizeLinear (r, s, z) a = Add (d, v) t = QuantizeLinear (a, s, z) "
        "so = DequantizeLinear (t, s, z) each = Identity (so) }> (f, items) }"
    ),
}  # fmt: skip

_MODEL = '<ir_version: 10, opset_import: ["" : 21, "local" : 1]>'
_LOCAL = '<opset_import: ["" : 21, "local" : 1], domain: "local">'
_CONSTANTS = (
    "s = Constant <value = float {0.0497}> () z = Constant <value = uint8 {120}> () "
    "w = Constant <value = int8[2,2,1,1] {9, -20, 33, 4}> () "
    "sw = Constant <value = float {0.0203}> ()"
)
_FUNCTION = f"{_INPUT} {_KERNEL} {_LAYER.format('y')}"
_PLAIN = f"{_MODEL} g ({_T} f) => ({_T} y)"

FUNCTIONS: dict[str, str] = {
    "constants in the body": (
        f"{_PLAIN} {{ y = local.layer (f) }} {_LOCAL} layer (f) => (y) "
        f"{{ {_CONSTANTS} {_FUNCTION} }}"
    ),
    "weights and scales as inputs, different at each call": (
        f"{_PLAIN} <{_GRID}, {_WEIGHTS}, float s2 = {{0.031}}> "
        "{ t = local.layer (f, s, z, w, sw) y = local.layer (t, s2, z, w, sw) } "
        f"{_LOCAL} layer (f, s, z, w, sw) => (y) {{ {_FUNCTION} }}"
    ),
    "an axis and pads as attributes": (
        f"{_PLAIN} {{ y = local.layer <axis: int = 0, edge: ints = [0, 0, 0, 0]> (f) }} "
        f"{_LOCAL} layer <axis, edge> (f) => (y) {{ "
        + (_CONSTANTS.replace("float {0.0203}", "float[2] {0.0203, 0.011}") + _FUNCTION)
        .replace("DequantizeLinear (w, sw)", "DequantizeLinear <axis: int = @axis> (w, sw)")
        .replace("Conv (x, k)", "Conv <pads: ints = @edge> (x, k)")
        + " }"
    ),
    "a fake quantizer": (
        f"{_PLAIN} <{_GRID}, {_WEIGHTS}> {{ x = local.fake (f, s, z) {_KERNEL} c = Conv (x, k) "
        f"y = local.fake (c, s, z) }} {_LOCAL} fake (f, s, z) => (x) {{ {_INPUT} }}"
    ),
    "real arithmetic between codes": (
        f"{_PLAIN} <{_GRID}, {_WEIGHTS}> {{ {_INPUT} {_KERNEL} c = local.block (x, k) "
        "p = QuantizeLinear (c, s, z) y = DequantizeLinear (p, s, z) } "
        f"{_LOCAL} block (x, k) => (c) {{ t = Conv (x, k) c = Relu (t) }}"
    ),
    "codes in and out, in a function of a function": (
        f"{_PLAIN} <{_GRID}> {{ q = QuantizeLinear (f, s, z) p = local.outer (q) "
        "y = DequantizeLinear (p, s, z) } "
        f"{_LOCAL} outer (a) => (b) {{ t = local.inner (a) b = local.inner (t) }} "
        f"{_LOCAL} inner (q) => (p) {{ {_CONSTANTS} x = DequantizeLinear (q, s, z) {_KERNEL} "
        "c = Conv (x, k) p = QuantizeLinear (c, s, z) }"
    ),
}  # fmt: skip


def _feeds(model: ir.Model) -> list[dict[str, Any]]:
    feeds: list[dict[str, Any]] = []
    for seed in range(3):
        numbers = np.random.default_rng(seed)
        feed: dict[str, Any] = {}
        for value in model.graph.inputs:
            assert value.name is not None
            if value.dtype == ir.DataType.BOOL:
                feed[value.name] = np.array(seed % 2 == 0)
            elif value.dtype == ir.DataType.INT64:
                feed[value.name] = np.array(seed + 1)
            else:
                assert value.shape is not None
                shape = value.shape.numpy()
                feed[value.name] = (2 * numbers.standard_normal(shape)).astype(np.float32)
        feeds.append(feed)
    return feeds


def _fold(model: ir.Model, target: str) -> tuple[ir.Model, Counter[str]]:
    passes = parse_passes(f"{FOLD},fold-qdq{{target={target}}},{TIDY}")
    folded = Pipeline(passes).run(model).model
    onnx.checker.check_model(ir.to_proto(folded), full_check=True)
    return folded, Counter(node.op_type for node in folded.graph.all_nodes())


def _check(
    text: str,
    target: str,
    parse: Callable[..., ir.Model],
    evaluate: Callable[..., dict[str, Any]],
) -> Counter[str]:
    model, census = _fold(parse(text), target)
    for feed in _feeds(model):
        wanted, found = evaluate(parse(text), feed), evaluate(model, feed)
        for name, array in wanted.items():
            np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-5)
    return census


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", BODIES)
def test_bodies_fold(
    case: str,
    target: str,
    parse: Callable[..., ir.Model],
    evaluate: Callable[..., dict[str, Any]],
) -> None:
    census = _check(BODIES[case], target, parse, evaluate)
    assert census["If"] + census["Loop"] + census["Scan"] >= 1
    products = {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
    if target != "qdq":
        assert sum(census[each] for each in products) == 1
        assert not set(census) & {"Conv", "MatMul"}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", FUNCTIONS)
def test_functions_fold_where_they_are_called(
    case: str,
    target: str,
    parse: Callable[..., ir.Model],
    evaluate: Callable[..., dict[str, Any]],
) -> None:
    census = _check(FUNCTIONS[case], target, parse, evaluate)
    if target != "qdq":
        assert not census["Conv"]
        assert census["QLinearConv"] + census["ConvInteger"] == (
            2 if "each call" in case or "function of a function" in case else 1
        )


def test_a_branch_is_folded_as_written(
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    assert_text: Callable[[ir.Model, str], None],
) -> None:
    model = parse(BODIES["codes as the result of branches"])
    result = apply_pass("fold-qdq", model)
    assert_text(
        model,
        f"""g ({_T} f, bool on) => ({_T} y) <float s = {{0.0497}}, uint8 z = {{120}}>
        {{
          q = QuantizeLinear (f, s, z)
          o = If (on) <
            then_branch = t () => (uint8[1,2,4,4] ty)
              <uint8 zero_point = {{120}}, float scale = {{0.0497}}, int8 zero_point_1 = {{0}},
               float scale_1 = {{0.0203}}, int8[2,2,1,1] c_weights_codes = {{9, -20, 33, 4}}>
            {{
              ty = QLinearConv (q, scale, zero_point, c_weights_codes, scale_1, zero_point_1,
                                scale, zero_point)
            }},
            else_branch = e () => (uint8[1,2,4,4] ey) {{ ey = Identity (q) }}
          >
          y = DequantizeLinear (o, s, z)
        }}""",
    )
    assert result.rules["fold-linear"] == 1


def test_parameters_of_a_function_that_is_not_inlined_are_the_reason(
    parse: Callable[..., ir.Model], apply_pass: Callable[..., PassResult]
) -> None:
    model = parse(FUNCTIONS["an axis and pads as attributes"])
    before = [node.op_type for function in model.functions.values() for node in function]
    remarks = apply_pass("fold-qdq", model).remarks
    after = [node.op_type for function in model.functions.values() for node in function]
    assert Counter(after)["Conv"] == Counter(before)["Conv"] == 1
    assert any("parameters of a local function" in remark.reason for remark in remarks)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "source",
    ["v = Neg (f)", "o = QuantizeLinear (f, s2, z8) v = DequantizeLinear (o, s2, z8)"],
)
def test_each_branch_quantizes_what_it_captures_for_itself(
    source: str,
    target: str,
    parse: Callable[..., ir.Model],
    evaluate: Callable[..., dict[str, Any]],
) -> None:
    branch = "a = QuantizeLinear (v, s, z8) b = DequantizeLinear (a, s, z8) " + _LAYER.replace(
        "(x, k)", "(b, k)"
    ).replace(", z)", ", z8)")
    text = (
        f"g ({_T} f, bool on) => ({_T} y, {_T} e) <{_GRID}, {_WEIGHTS}, float s2 = {{0.0311}}, "
        f"int8 z8 = {{-8}}> {{ {source} e = Erf (v) {_KERNEL} "
        f"y = {_if(branch.format('ty'), branch.format('ey'))} }}"
    )
    _check(text, target, parse, evaluate)
