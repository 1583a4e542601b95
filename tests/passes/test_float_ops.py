"""What counts as float arithmetic between codes."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from onnxfold.passes.float_ops import float_ops_between
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.registry import parse_passes

_WEIGHTS = ", ".join(["1"] * 16)
_CONSTANTS = f"""
float s = {{0.1}}, uint8 z = {{3}}, int8[4,4] w = {{{_WEIGHTS}}}, int8 v = {{0}}, float f = {{2.0}}
"""

CASES: dict[str, tuple[str, str, str, list[str], list[str]]] = {
    "nothing before the first and after the last": (
        "float[4,4] x", "float[4,4] y",
        "a = Relu(x) c = QuantizeLinear(a, s, z) r = DequantizeLinear(c, s, z) y = Relu(r)",
        [], [],
    ),
    "a pair between two products": (
        "float[4,4] x", "float[4,4] y",
        "c = QuantizeLinear(x, s, z) r = DequantizeLinear(c, s, z) m = Exp(r) "
        "d = QuantizeLinear(m, s, z) y = DequantizeLinear(d, s, z)",
        ["DequantizeLinear", "Exp", "QuantizeLinear"],
        ["DequantizeLinear", "Exp", "QuantizeLinear"],
    ),
    "an integer kernel with float scales": (
        "float[4,4] x", "float[4,4] y",
        "c = QuantizeLinear(x, s, z) p = QLinearMatMul(c, s, z, w, s, v, s, z) "
        "y = DequantizeLinear(p, s, z)",
        [], ["QLinearMatMul"],
    ),
    "from codes to codes": (
        "uint8[4,4] q", "uint8[4,4] y",
        "a = Cast<to = 1>(q) b = Mul(a, f) y = Cast<to = 2>(b)",
        ["Cast", "Mul", "Cast"], ["Cast", "Mul", "Cast"],
    ),
    "codes that go in and reals that come out": (
        "uint8[4,4] q", "float[4,4] y",
        "r = DequantizeLinear(q, s, z) y = Exp(r)",
        [], [],
    ),
    "constants and shapes": (
        "float[4,4] x", "float[4,4] y",
        "c = QuantizeLinear(x, s, z) n = Shape(c) i = Cast<to = 1>(n) j = Mul(i, f) "
        "k = Cast<to = 7>(j) e = Expand(c, k) y = DequantizeLinear(e, s, z)",
        [], [],
    ),
    "a branch": (
        "float[4,4] x, bool b", "float[4,4] y",
        "c = QuantizeLinear(x, s, z) d = If (b) <"
        "then_branch = t () => (uint8[4,4] o) "
        "{ r = DequantizeLinear(c, s, z) m = Exp(r) o = QuantizeLinear(m, s, z) }, "
        "else_branch = e () => (uint8[4,4] p) { p = Identity(c) }> "
        "y = DequantizeLinear(d, s, z)",
        ["DequantizeLinear", "Exp", "QuantizeLinear"],
        ["DequantizeLinear", "Exp", "QuantizeLinear"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_float_operators_between_codes(case: str, parse: Callable[..., ir.Model]) -> None:
    inputs, outputs, body, expected, strict = CASES[case]
    model = parse(f"g ({inputs}) => ({outputs}) <{_CONSTANTS}> {{ {body} }}")
    model = Pipeline(parse_passes("infer-shapes")).run(model).model
    assert [node.op_type for node in float_ops_between(model)] == expected
    assert [node.op_type for node in float_ops_between(model, strict=True)] == strict


def test_a_loop_carries_codes_into_its_body(parse: Callable[..., ir.Model]) -> None:
    model = parse("""
        g (float[4] x, int64 n, bool go) => (float[4] y)
        <float s = {0.1}, uint8 z = {3}>
        {
            c = QuantizeLinear(x, s, z)
            d = Loop(n, go, c) <body = b (int64 i, bool on, uint8[4] h)
                => (bool off, uint8[4] o)
            {
                off = Identity(on)
                r = DequantizeLinear(h, s, z)
                m = Exp(r)
                o = QuantizeLinear(m, s, z)
            }>
            y = DequantizeLinear(d, s, z)
        }
    """)
    model = Pipeline(parse_passes("infer-shapes")).run(model).model
    found = [node.op_type for node in float_ops_between(model)]
    assert found == ["DequantizeLinear", "Exp", "QuantizeLinear"]
