"""Counting what is in a model: kinds of work, multiply-accumulates, what it is as a whole."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from onnxfold.passes.census import ModelKind, integer_weights, model_kind, take_census
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.registry import parse_passes

_CONTRIB = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>'


def inferred(model: ir.Model) -> ir.Model:
    return Pipeline(parse_passes("infer-shapes")).run(model).model


def test_nodes_are_sorted_by_the_work_they_do(parse: Callable[..., ir.Model]) -> None:
    model = parse("""
        g (float[2,4] x, uint8[2,4] q) => (float[4,2] y, uint8[2,4] c)
        <float s = {0.1}, uint8 z = {3}, float[4] k = {1, 2, 3, 4}>
        {
            k2 = Neg(k)
            a = Add(x, k2)
            codes = QuantizeLinear(a, s, z)
            b = DequantizeLinear(codes, s, z)
            shape = Shape(b)
            zero = Constant<value = int64 {0}>()
            first = Gather(shape, zero)
            y = Transpose<perm = [1, 0]>(b)
            c = Max(q, codes)
        }
    """)
    assert take_census(inferred(model)).kinds == {
        "integer arithmetic": 1,
        "float arithmetic": 1,
        "quantize": 1,
        "dequantize": 1,
        "data movement": 1,
        "shape computation": 2,
        "constants": 2,
    }


MACS = {
    "a convolution in groups": (
        "y = Conv<group = 2>(x, w)",
        "float[4,2,3,3] w",
        "float[1,4,4,4]",
        16 * 4 * 2 * 9,
    ),
    "a transposed convolution": (
        "y = ConvTranspose(x, w)",
        "float[4,2,3,3] w",
        "float[1,2,8,8]",
        4 * 36 * 2 * 9,
    ),
    "a product of the last axis": (
        "y = MatMul(x, w)",
        "float[6,5] w",
        "float[1,4,6,5]",
        4 * 6 * 5 * 6,
    ),
    "integers": ("y = ConvInteger(q, w)", "int8[2,4,3,3] w", "int32[1,2,4,4]", 2 * 16 * 4 * 9),
    "attention": ("y = Attention(x, x, x)", "float[1] w", "float[1,4,6,6]", 2 * 4 * 6 * 6 * 6),
    "a recurrent layer": (
        "y = LSTM<hidden_size = 2>(m, w, r)",
        "float[1,8,6] w, float[1,8,2] r, float[4,6,6] m",
        "float[4,1,6,2]",
        24 * (48 + 16),
    ),
}


@pytest.mark.parametrize("case", MACS)
def test_multiply_accumulates_follow_from_the_shapes(
    case: str, parse: Callable[..., ir.Model]
) -> None:
    body, inputs, output, expected = MACS[case]
    text = f"g (float[1,4,6,6] x, uint8[1,4,6,6] q, {inputs}) => ({output} y) {{ {body} }}"
    census = take_census(inferred(parse(text, opset=23)))
    assert (census.macs, census.unknown_macs) == (expected, 0)
    assert census.integer_share == (1.0 if case == "integers" else 0.0)


def test_only_the_projection_of_quantized_attention_is_integer(
    parse: Callable[..., ir.Model],
) -> None:
    model = parse(f"""
        {_CONTRIB}
        g (uint8[1,5,8] x, int8[8,24] w, float[24] b, float s, float t)
            => (float[1,5,8] y)
        {{ y = com.microsoft.QAttention<num_heads = 2>(x, w, b, s, t) }}
    """)
    census = take_census(model)
    projection, scores = 5 * 8 * 24, 2 * 5 * 5 * 8
    assert (census.integer_macs, census.macs) == (projection, projection + scores)


def test_fake_quantized_products_are_counted_apart(parse: Callable[..., ir.Model]) -> None:
    model = parse("""
        g (uint8[2,4] q, float[2,4] f, int8[4,3] w) => (float[2,3] y, float[2,3] z)
        <float s = {0.1}>
        {
            x = DequantizeLinear(q, s)
            r = DequantizeLinear(w, s)
            y = MatMul(x, r)
            z = MatMul(f, r)
        }
    """)
    census = take_census(inferred(model))
    assert (census.macs, census.qdq_macs, census.integer_macs) == (48, 24, 0)


def test_parameters_are_counted_by_type(parse: Callable[..., ir.Model]) -> None:
    model = parse("""
        g (float[2] x) => (float[2] y)
        <int8[2] w = {1, 2}>
        { k = Constant<value = float[2] {1.0, 2.0}>() y = Add(x, k) }
    """)
    census = take_census(model)
    assert census.parameters_by_type == {
        "float": {"elements": 2, "bytes": 8},
        "int8": {"elements": 2, "bytes": 2},
    }
    assert (census.parameters, census.parameter_bytes) == (4, 10)


_WEIGHTS = ", ".join(["1"] * 12)
_ENDS = f"""
float[2,4] x) => (float[2,3] y)
<int8[4,3] w = {{{_WEIGHTS}}}, float s = {{0.1}}, uint8 z = {{1}}, int8 v = {{0}}>
"""
_QUANTIZED = "c = QuantizeLinear(x, s, z)"
KINDS = {
    "float": (ModelKind.FLOAT, "r = Cast<to = 1>(w) y = MatMul(x, r)"),
    "weights behind a DequantizeLinear": (
        ModelKind.WEIGHT_ONLY,
        "r = DequantizeLinear(w, s) y = MatMul(x, r)",
    ),
    "weights behind Cast and Mul": (
        ModelKind.WEIGHT_ONLY,
        "k = Cast<to = 1>(w) r = Mul(k, s) y = MatMul(x, r)",
    ),
    "fake-quantized": (
        ModelKind.FAKE_QUANTIZED,
        f"{_QUANTIZED} d = DequantizeLinear(c, s, z) r = DequantizeLinear(w, s) y = MatMul(d, r)",
    ),
    "dynamic": (
        ModelKind.DYNAMIC,
        "c, t, u = DynamicQuantizeLinear(x) a = MatMulInteger(c, w, u) "
        "f = Cast<to = 1>(a) y = Mul(f, t)",
    ),
    "integer": (
        ModelKind.INTEGER,
        f"{_QUANTIZED} p = QLinearMatMul(c, s, z, w, s, v, s, z) y = DequantizeLinear(p, s, z)",
    ),
    "mixed": (
        ModelKind.MIXED,
        f"{_QUANTIZED} p = QLinearMatMul(c, s, z, w, s, v, s, z) m = DequantizeLinear(p, s, z) "
        "t = Transpose(m) n = MatMul(m, t) y = MatMul(n, m)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", KINDS)
def test_a_model_is_called_what_it_is(case: str, parse: Callable[..., ir.Model]) -> None:
    kind, body = KINDS[case]
    assert model_kind(inferred(parse(f"g ({_ENDS} {{ {body} }}"))) is kind


def test_integer_weights_are_those_that_are_cast_and_scaled(
    parse: Callable[..., ir.Model],
) -> None:
    model = parse("""
        g (float[2] x) => (float[2] y)
        <int8[2] w = {1, 2}, int8[2] ids = {0, 1}, float s = {0.1}>
        {
            k = Cast<to = 1>(w)
            t = Transpose(k)
            r = Mul(t, s)
            m = Add(x, r)
            i = Cast<to = 1>(ids)
            y = Add(m, i)
        }
    """)
    assert list(integer_weights(model)) == ["w"]
