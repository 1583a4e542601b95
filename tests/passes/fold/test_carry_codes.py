"""If, Loop and Scan that hand on codes: what is rewritten, and that no number changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import PassResult
from onnxfold.passes.fold.carry_codes import CarryCodes
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import folding
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session

TARGETS = ("ort", "standard", "integer", "qdq")
_T = "float[1,2,4,4]"
# Products of these scales are no halves of codes: nothing ties.
_GRID = (
    "float s = {0.0497}, uint8 z = {120}, float sw = {0.0203}, int8[2,2,1,1] w = {9, -20, 33, 4}"
)
_X = "q = QuantizeLinear (f, s, z) x = DequantizeLinear (q, s, z) k = DequantizeLinear (w, sw)"
_Y = "y = QuantizeLinear (r, s, z)"
_LAYER = "c = Conv (st, k) p = QuantizeLinear (c, s, z) so = DequantizeLinear (p, s, z)"


def _if(then: str, otherwise: str) -> str:
    return (
        f"If (on) <then_branch = t () => ({_T} ty) {{ {then} }}, "
        f"else_branch = e () => ({_T} ey) {{ {otherwise} }}>"
    )


def _loop(body: str, start: str = "x") -> str:
    return (
        f"Loop (n, on, {start}) <body = b (int64 i, bool go, {_T} st) => (bool og, {_T} so) "
        f"{{ og = Identity (go) {body} }}>"
    )


def _graph(nodes: str, inputs: str = "bool on", outputs: str = "uint8[1,2,4,4] y") -> str:
    return f"g ({_T} f, {inputs}) => ({outputs}) <{_GRID}> {{ {_X} {nodes} }}"


_COUNTED = "int64 n, bool on"

CASES: dict[str, tuple[str, int]] = {
    "a result quantized behind an If": (
        _graph(f"r = {_if('ty = Conv (x, k)', 'ey = Relu (x)')} {_Y}"), 1
    ),
    "a result quantized behind two Ifs and a Relu": (
        _graph(
            f"m = {_if('ty = ' + _if('ty = Conv (x, k)', 'ey = Abs (x)'), 'ey = Relu (x)')} "
            f"r = Relu (m) {_Y}"
        ), 2
    ),
    "results that are codes already": (
        _graph(f"m = {_if('ty = Identity (x)', 'v = Relu (x) ty_ = Identity (v) ey = Relu (ty_)')} "
               f"r = Conv (m, k) e = Erf (m) {_Y}", outputs=f"uint8[1,2,4,4] y, {_T} e"), 1
    ),
    "a captured value that both bodies quantize": (
        _graph("m = Conv (x, k) r = " + _if(
            "a = QuantizeLinear (m, s, z) ty = DequantizeLinear (a, s, z)",
            "a = QuantizeLinear (m, s, z) d = DequantizeLinear (a, s, z) ey = Conv (d, k)"
        ) + f" {_Y}"), 1
    ),
    "a state that is codes": (_graph(f"r = {_loop(_LAYER)} {_Y}", _COUNTED), 1),
    "a state that is codes, and a real result": (
        _graph(f"y = {_loop(_LAYER)}", _COUNTED, outputs=f"{_T} y"), 1
    ),
    "a state that all its readers quantize": (
        _graph("r = " + _loop(
            "a = QuantizeLinear (st, s, z) d = DequantizeLinear (a, s, z) so = Conv (d, k)", "f"
        ) + f" {_Y}", _COUNTED), 1
    ),
    "a state that is turned round": (
        _graph("r = " + _loop("v = Transpose <perm = [0, 1, 3, 2]> (st) so = Relu (v)") + f" {_Y}",
               _COUNTED), 1
    ),
    "stacked results and slices": (
        f"g (float[3,2,4,4] f, bool on) => (uint8[3,2,4,4] y) <{_GRID}> {{ {_X} "
        "r = Scan <num_scan_inputs: int = 1, body: graph = b (float[2,4,4] item) => "
        "(float[2,4,4] each) { one = Constant <value_ints = [0]> () u = Unsqueeze (item, one) "
        f"c = Conv (u, k) each = Squeeze (c, one) }}> (x) {_Y} }}", 2
    ),
}  # fmt: skip

LEFT: dict[str, str] = {
    "an unrounded reader of the result": _graph(
        f"r = {_if('ty = Conv (x, k)', 'ey = Relu (x)')} e = Erf (r) {_Y}",
        outputs=f"uint8[1,2,4,4] y, {_T} e",
    ),
    "a state that is not rounded": _graph(f"r = {_loop('so = Conv (st, k)')} {_Y}", _COUNTED),
    "a state that starts unrounded": _graph(f"y = {_loop(_LAYER, 'f')}", _COUNTED, f"{_T} y"),
    "branches of different types": _graph(
        "r = "
        + _if("ty = Identity (x)", "a = QuantizeLinear (x, sw, z) ey = DequantizeLinear (a, sw, z)")
        + " y = Neg (r)",
        outputs=f"{_T} y",
    ),
    "a state that gives its input back": _graph(
        "y, h = Loop (n, on, x) <body = b (int64 i, bool go, "
        f"{_T} st) => (bool og, {_T} st, {_T} each) {{ og = Identity (go) each = Neg (st) }}>",
        _COUNTED,
        f"{_T} y, float[N,1,2,4,4] h",
    ),
}


def _feeds(model: ir.Model) -> list[dict[str, Any]]:
    feeds: list[dict[str, Any]] = []
    for seed in range(3):
        numbers = np.random.default_rng(seed)
        value = next(each for each in model.graph.inputs if each.name == "f")
        assert value.shape is not None
        shape = value.shape.numpy()
        feed: dict[str, Any] = {
            "f": (2 * numbers.standard_normal(shape)).astype(np.float32),
            "on": np.array(seed != 1),
            "n": np.array(seed),
        }
        given = {each.name for each in model.graph.inputs}
        feeds.append({name: array for name, array in feed.items() if name in given})
    return feeds


def _check_numbers(text: str, folded: ir.Model, parse: Callable[..., ir.Model]) -> None:
    before = Session(parse(text), REFERENCE)
    for config in (REFERENCE, DEPLOYMENT):
        after = Session(folded, config)
        for feed in _feeds(parse(text)):
            found = after.run(feed)
            for name, wanted in before.run(feed).items():
                np.testing.assert_allclose(found[name], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_codes_are_handed_on_with_the_same_numbers(
    case: str, parse: Callable[..., ir.Model], apply_pass: Callable[..., PassResult]
) -> None:
    text, count = CASES[case]
    model = parse(text)
    result = apply_pass(CarryCodes(), model)
    assert result.rules == {"carry-codes": count}
    _check_numbers(text, model, parse)
    assert not apply_pass(CarryCodes(), model).rules


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES)
def test_bodies_then_fold(case: str, target: str, parse: Callable[..., ir.Model]) -> None:
    text, _ = CASES[case]
    folded = Pipeline(parse_passes(folding(target))).run(parse(text)).model
    _check_numbers(text, folded, parse)
    census = Counter(node.op_type for node in folded.graph.all_nodes())
    if target != "qdq":
        assert not set(census) & {"Conv", "Transpose"} or census["Transpose"] == 1
    if target != "qdq" and "real" not in case:
        assert census["QuantizeLinear"] == 1


@pytest.mark.parametrize("case", LEFT)
def test_what_would_change_numbers_is_left(
    case: str, parse: Callable[..., ir.Model], apply_pass: Callable[..., PassResult]
) -> None:
    assert not apply_pass(CarryCodes(), parse(LEFT[case])).rules


@pytest.mark.parametrize(("recode", "dtype", "zero"), [(False, "int8", -8), (True, "uint8", 120)])
def test_a_result_as_text(
    recode: bool,
    dtype: str,
    zero: int,
    parse: Callable[..., ir.Model],
    apply_pass: Callable[..., PassResult],
    assert_text: Callable[[ir.Model, str], None],
) -> None:
    head = f"g ({_T} x, bool on) => (int8[1,2,4,4] y) <float s = {{0.05}}, int8 z = {{-8}}>"
    model = parse(
        f"""{head} {{
          r = If (on) <then_branch = t () => ({_T} ty) {{ ty = Neg (x) }},
                       else_branch = e () => ({_T} ey) {{ ey = Relu (x) }}>
          y = QuantizeLinear (r, s, z)
        }}"""
    )
    result = apply_pass(CarryCodes(recode), model)
    assert_text(
        model,
        f"""g ({_T} x, bool on) => (int8[1,2,4,4] y)
        <float s = {{0.05}}, int8 z = {{-8}},
         float scale_2 = {{0.05}}, {dtype} zero_point_2 = {{{zero}}}>
        {{
          r_codes = If (on) <
            then_branch = t () => ({dtype}[1,2,4,4] ty_codes)
              <float scale = {{0.05}}, {dtype} zero_point = {{{zero}}}>
              {{ ty = Neg (x) ty_codes = QuantizeLinear (ty, scale, zero_point) }},
            else_branch = e () => ({dtype}[1,2,4,4] ey_codes)
              <float scale_1 = {{0.05}}, {dtype} zero_point_1 = {{{zero}}}>
              {{ ey = Relu (x) ey_codes = QuantizeLinear (ey, scale_1, zero_point_1) }}>
          r = DequantizeLinear (r_codes, scale_2, zero_point_2)
          y = QuantizeLinear (r, s, z)
        }}""",
    )
    assert result.rules == {"carry-codes": 1}
