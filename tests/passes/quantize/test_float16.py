"""float16: whole models, mixed ones, and weights alone."""

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
from onnxfold.passes.quantize.convert_float16 import ConvertFloat16
from onnxfold.passes.quantize.float16_constants import to_float16
from onnxfold.passes.quantize.ranges import Ranges
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session

Array = npt.NDArray[Any]
Parse = Callable[..., ir.Model]
Apply = Callable[[Pass | str, ir.Model], PassResult]
RandomFeed = Callable[..., dict[str, Array]]

FIXTURES = ["conv_net", "mobile_net", "transformer", "control_flow", "tiny_resnet_float"]


def _prepared(path: Path, apply_pass: Apply) -> ir.Model:
    model = ir.load(path)
    for name in ("upgrade-opset", "inline-functions", "lift-constants", "infer-shapes"):
        apply_pass(name, model)
    return model


def _run(model: ir.Model, feed: Mapping[str, Any]) -> list[dict[str, Any]]:
    proto = ir.to_proto(model)
    return [Session(proto, config).run(feed) for config in (REFERENCE, DEPLOYMENT)]


def _lines(model: ir.Model) -> list[str]:
    return [
        f"{node.outputs[0].name} = {node.op_type}"
        f"({', '.join(str(value and value.name) for value in node.inputs)})"
        for node in model.graph
    ]


def _near(found: Array, expected: Array) -> bool:
    noise = np.square(found.astype(np.float64) - expected).sum()
    return bool(noise <= 1e-4 * np.square(expected.astype(np.float64)).sum() + 1e-12)


@pytest.mark.parametrize("io", ["float32", "float16"])
@pytest.mark.parametrize("name", FIXTURES)
def test_models_compute_nearly_the_same(
    name: str, io: Any, fixtures_dir: Path, apply_pass: Apply, random_feed: RandomFeed
) -> None:
    model = _prepared(fixtures_dir / f"{name}.onnx", apply_pass)
    feed = random_feed(model)
    expected = Session(ir.to_proto(model)).run(feed)
    interface = [(v.name, v.dtype, v.shape) for v in (*model.graph.inputs, *model.graph.outputs)]
    apply_pass(ConvertFloat16(io=io), model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    kind = ir.DataType.FLOAT if io == "float32" else ir.DataType.FLOAT16
    assert [(v.name, v.dtype, v.shape) for v in (*model.graph.inputs, *model.graph.outputs)] == [
        (known, kind if dtype == ir.DataType.FLOAT else dtype, shape)
        for known, dtype, shape in interface
    ]
    if io == "float16":
        feed = {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in feed.items()}
    for found in _run(model, feed):
        for output, array in expected.items():
            if array.dtype == np.float32:
                assert _near(found[output], array), output
            else:
                np.testing.assert_array_equal(found[output], array)


def test_casts_stand_where_types_meet(parse: Parse, apply_pass: Apply) -> None:
    model = parse("""
    g (float[2] x) => (float[2] y, float[2] z)
    <float[2] w = {1, 70000}>
    {
      a = Mul(x, w)
      z = Exp(a)
      b = Add(z, w)
      y = Neg(b)
    }""")
    apply_pass("infer-shapes", model)
    result = apply_pass("convert-float16{keep=Exp}", model)
    assert result.rules == {"cast-input": 5, "convert-node": 3, "convert-output": 1}
    assert [(each.node, each.reason) for each in result.remarks] == [
        ("z", "it stays float32: the option keep names it"),
        ("a", "'w' in float16: 1 of 2 values clipped (up to 7e+04)"),
    ]
    assert _lines(model) == [
        "x_half = Cast(x)",
        "a = Mul(x_half, w_half)",
        "a_float = Cast(a)",
        "z = Exp(a_float)",
        "z_half = Cast(z)",
        "b = Add(z_half, w_half)",
        "y_original = Neg(b)",
        "y = Cast(y_original)",
    ]
    np.testing.assert_array_equal(
        constant_array(model.graph.initializers["w_half"]), np.array([1, 65504], np.float16)
    )


def test_large_values_stay_float32(parse: Parse, apply_pass: Apply) -> None:
    model = parse("""
    g (float[2] x) => (float[2] y)
    <float[2] w = {2, 3}>
    {
      a = Mul(x, w)
      b = Mul(a, a)
      y = Sqrt(b)
    }""")
    apply_pass("infer-shapes", model)
    ranges = Ranges({"a": (-300.0, 400.0), "b": (0.0, 160000.0), "x": (0.0, 130.0)})
    result = apply_pass(ConvertFloat16(ranges=ranges), model)
    assert [(each.node, each.reason) for each in result.remarks] == [
        ("b", "it stays float32: 'b' reaches 1.6e+05"),
        ("y", "it stays float32: 'b' reaches 1.6e+05"),
    ]
    x = np.array([100.0, 130.0], np.float32)
    for found in _run(model, {"x": x}):
        np.testing.assert_allclose(found["y"], [200.0, 390.0], rtol=2e-3)


def test_margin(parse: Parse) -> None:
    text = "g (float[2] x) => (float[2] y) { y = Neg(x) }"
    ranges = Ranges({"x": (-20000.0, 0.0)})
    assert ConvertFloat16(ranges=ranges).run(parse(text)).remarks
    assert not ConvertFloat16(ranges=ranges, margin=2.0).run(parse(text)).remarks


def test_operators_without_a_float16_form_and_sizes_stay(parse: Parse, apply_pass: Apply) -> None:
    model = parse("""
    g (float[n,4] x) => (float[m] y, float[n,4] s)
    <float zero = {0}, float step = {1}, float[1] half = {0.5}>
    {
      shape = Shape<end = 1>(x)
      rows = Cast<to = 1>(shape)
      less = Mul(rows, half)
      limit = Squeeze(rows)
      y = Range(zero, limit, step)
      s = Relu(x)
    }""")
    apply_pass("infer-shapes", model)
    result = apply_pass("convert-float16", model)
    by_name = {value.name: value.dtype for node in model.graph for value in node.outputs}
    assert by_name["less"] == ir.DataType.FLOAT
    assert by_name["y"] == ir.DataType.FLOAT
    assert by_name["s_original"] == ir.DataType.FLOAT16
    assert [each.node for each in result.remarks] in ([], ["y"])
    for found in _run(model, {"x": np.ones((3, 4), np.float32)}):
        np.testing.assert_array_equal(found["y"], [0, 1, 2])


def test_casts_constants_and_resize_scales(parse: Parse, apply_pass: Apply) -> None:
    model = parse("""
    g (int64[1,1,2,2] i, int64[4] shape) => (float[a,b,c,d] y, bool[a,b,c,d] z)
    <float[4] scales = {1, 1, 2, 2}>
    {
      x = Cast<to = 1>(i)
      k = Constant<value = float[1] {0.25}>()
      a = Add(x, k)
      r = Resize<mode = "nearest">(a, , scales)
      o = ConstantOfShape<value = float[1] {1.5}>(shape)
      y = Mul(r, o)
      z = Cast<to = 9>(y)
    }""")
    apply_pass("infer-shapes", model)
    apply_pass("convert-float16", model)
    types = {value.name: value.dtype for node in model.graph for value in node.outputs}
    assert types["x"] == types["r"] == types["o"] == ir.DataType.FLOAT16
    i = np.arange(4).reshape(1, 1, 2, 2)
    for found in _run(model, {"i": i, "shape": np.array([1, 1, 4, 4])}):
        expected = (np.kron(i, np.ones((2, 2))) + 0.25) * 1.5
        np.testing.assert_allclose(found["y"], expected, rtol=1e-3)
        assert found["z"].all()


def test_bodies_are_float16_inside_and_float32_at_their_edges(
    parse: Parse, apply_pass: Apply
) -> None:
    model = parse("""
    g (float[2] x, bool b) => (float[2] y)
    <float[2] w = {2, 3}>
    {
      a = Mul(x, w)
      y = If (b) <then_branch = yes () => (float[2] p) { m = Mul(a, w) p = Neg(m) },
                  else_branch = no () => (float[2] q) { q = Add(a, w) }>
    }""")
    apply_pass("infer-shapes", model)
    apply_pass("convert-float16", model)
    bodies = [
        attribute.as_graph()
        for node in model.graph
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.GRAPH
    ]
    assert [[node.op_type for node in body] for body in bodies] == [
        ["Mul", "Neg", "Cast"],
        ["Add", "Cast"],
    ]
    x = np.array([1.5, -2.0], np.float32)
    for branch, expected in ((True, [-6.0, 18.0]), (False, [5.0, -3.0])):
        for found in _run(model, {"x": x, "b": np.array(branch)}):
            np.testing.assert_allclose(found["y"], expected)


def test_quantized_operators_stay_between_float32_pairs(parse: Parse, apply_pass: Apply) -> None:
    model = parse("""
    g (float[2] x) => (float[2] y)
    <float s = {0.5}, uint8 z = {0}>
    {
      a = Neg(x)
      q = QuantizeLinear(a, s, z)
      d = DequantizeLinear(q, s, z)
      y = Neg(d)
    }""")
    apply_pass("infer-shapes", model)
    apply_pass("convert-float16", model)
    assert [node.op_type for node in model.graph] == [
        *("Cast", "Neg", "Cast", "QuantizeLinear", "DequantizeLinear", "Cast", "Neg", "Cast")
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": ("Expp",)}, "no node and no operator 'Expp'; did you mean 'Exp'"),
        ({"margin": 0.0}, "margin=0 is not above 0"),
    ],
)
def test_options_are_checked(parse: Parse, options: dict[str, Any], message: str) -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = Exp(x) }")
    with pytest.raises(UsageError, match=message):
        ConvertFloat16(**options).run(model)


def test_types_have_to_be_known(parse: Parse, fixtures_dir: Path) -> None:
    model = parse("g (float[2] x) => (float[2] y) { a = Exp(x) y = Neg(a) }")
    with pytest.raises(PassError, match="Exp 'a' makes is not known: run infer-shapes first"):
        ConvertFloat16().run(model)
    with pytest.raises(PassError, match="run inline-functions first"):
        ConvertFloat16().run(ir.load(fixtures_dir / "local_functions.onnx"))


def test_what_becomes_of_constants() -> None:
    array = np.array([1.0, -7e4, np.inf, -np.inf, np.nan, 1e-9, 65504.0], np.float32)
    half, lost = to_float16(array)
    np.testing.assert_array_equal(
        half, np.array([1, -65504, np.inf, -np.inf, np.nan, 0, 65504], np.float16)
    )
    assert lost == "1 of 7 values clipped (up to 7e+04), 1 of 7 values too small, now 0"
    assert to_float16(np.ones(3, np.float32))[1] == ""


@pytest.mark.parametrize("name", [*FIXTURES, "qdq_net"])
def test_stored_in_float16_models_are_smaller_and_compute_the_same(
    name: str, fixtures_dir: Path, apply_pass: Apply, random_feed: RandomFeed
) -> None:
    model = _prepared(fixtures_dir / f"{name}.onnx", apply_pass)
    feed = random_feed(model)
    expected = Session(ir.to_proto(model)).run(feed)
    result = apply_pass("store-float16{smallest=2}", model)
    assert result.remarks == ()
    for found in _run(model, feed):
        for output, array in expected.items():
            assert array.dtype != np.float32 or _near(found[output], array)


def test_the_cast_is_gone_when_the_model_is_loaded(
    parse: Parse, apply_pass: Apply, tmp_path: Path
) -> None:
    model = parse("""
    g (float[N,2] x) => (float[N,2] y)
    <float[2,2] w = {1, 2, 3, 0.333}>
    {
      a = MatMul(x, w)
      y = MatMul(a, w)
    }""")
    result = apply_pass("store-float16{smallest=4}", model)
    assert result.rules == {"store-half": 1}
    assert _lines(model) == [
        "w_float = Cast(w_half)",
        "a = MatMul(x, w_float)",
        "y = MatMul(a, w_float)",
    ]
    np.testing.assert_array_equal(
        constant_array(model.graph.initializers["w_half"]),
        np.array([[1, 2], [3, 0.333]], np.float16),
    )
    assert "w" not in model.graph.initializers
    path = tmp_path / "optimized.onnx"
    Session(ir.to_proto(model), DEPLOYMENT, optimized_model_path=path)
    assert "Cast" not in {node.op_type for node in onnx.load(path).graph.node}


def test_tensors_that_do_not_fit_stay(parse: Parse, apply_pass: Apply) -> None:
    model = parse("""
    g (float[2] x, float[2] k = {5, 6}) => (float[2] y)
    <float[2] w = {1, 70000}, float s = {0.5}, uint8 z = {0}, float[2] tiny = {1e-9, 1}>
    {
      a = Mul(x, w)
      q = QuantizeLinear(a, s, z)
      b = DequantizeLinear(q, s, z)
      c = Add(b, tiny)
      y = Add(c, k)
    }""")
    result = apply_pass("store-float16{smallest=1}", model)
    assert result.rules == {"store-half": 1}
    assert [(each.node, each.reason) for each in result.remarks] == [
        ("a", "'w' stays float32: it has values beyond 65504"),
        ("c", "'tiny' in float16: 1 of 2 values too small, now 0"),
    ]
