"""insert-qdq with other types than 8 bits, blocks, and several types in one model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxfold.passes.base import Pass, PassResult
from onnxfold.passes.constants import constant_array
from onnxfold.passes.errors import PassError, UsageError
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import folding
from onnxfold.passes.quantize.insert_qdq import InsertQdq
from onnxfold.passes.quantize.overrides import Overrides
from onnxfold.passes.quantize.placement import PlacementOptions, tensors_to_observe
from onnxfold.passes.quantize.ranges import Ranges
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session, version

Array = npt.NDArray[Any]
Parse = Callable[..., ir.Model]
Apply = Callable[[Pass | str, ir.Model], PassResult]
AssertText = Callable[[ir.Model, str], None]
Evaluate = Callable[[ir.Model, Mapping[str, Any]], dict[str, Any]]

NEWEST_IN_OLDEST = 22
"""The newest opset whose Q and DQ ONNX Runtime 1.23 has kernels for."""

CHAIN = """
g (float[1,2,4,4] x) => (float[1,2,2,2] y)
<float[2,2,1,1] w = {1, 0, 0.5, 1}, float[2] b = {1, 2}>
{
  [one] c1 = Conv(x, w, b)
  p = MaxPool<kernel_shape = [2,2], strides = [2,2]>(c1)
  [two] c2 = Conv(p, w, b)
  a = Add(c2, p)
  [three] y = Conv(a, w, b)
}
"""


def _ranges(model: ir.Model, limit: float = 20.0) -> Ranges:
    return Ranges(dict.fromkeys(tensors_to_observe(model, PlacementOptions()), (-limit, limit)))


def _codes_read(model: ir.Model) -> dict[str, list[str]]:
    """The types of codes each operator's float operands are dequantized from."""
    found: dict[str, list[str]] = {}
    for node in model.graph:
        makers = [value.producer() for value in node.inputs if value is not None]
        types = [
            maker.inputs[0].dtype.name
            for maker in makers
            if maker is not None
            and maker.op_type == "DequantizeLinear"
            and maker.inputs[0] is not None
            and maker.inputs[0].dtype is not None
        ]
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            found[node.name or node.outputs[0].name or ""] = types
    return found


def _feed() -> dict[str, Array]:
    return {"x": np.random.default_rng(1).normal(size=(1, 2, 4, 4)).astype(np.float32)}


@pytest.mark.parametrize("opset", [21, 23])
@pytest.mark.parametrize("activations", ["u8", "s8", "u16", "s16"])
@pytest.mark.parametrize("weights", ["s8", "u8", "s4", "u4", "s16"])
def test_types_of_codes_and_their_error(
    parse: Parse, apply_pass: Apply, activations: Any, weights: Any, opset: int
) -> None:
    model = parse(CHAIN, opset=opset)
    ranges, feed = _ranges(model), _feed()
    expected = Session(ir.to_proto(model)).run(feed)["y"]
    apply_pass(InsertQdq(ranges, activations, weights), model)
    data = {"u8": "UINT8", "s8": "INT8", "u16": "UINT16", "s16": "INT16"}[activations]
    codes = {"s8": "INT8", "u8": "UINT8", "s4": "INT4", "u4": "UINT4", "s16": "INT16"}[weights]
    assert _codes_read(model) == {
        "one": [data, codes, "INT32"],
        "p": [data],
        "two": [data, codes, "INT32"],
        "a": [data, data],
        "three": [data, codes, "INT32"],
    }
    step = 40 / (255 if "8" in activations else 65535)
    weight_step = {"s8": 1 / 127, "u8": 1 / 255, "s4": 1 / 7, "u4": 1 / 15, "s16": 1 / 32767}
    bound = 20 * step + 20 * weight_step[weights]
    if opset > NEWEST_IN_OLDEST and version().startswith("1.23."):
        pytest.skip(f"onnxruntime {version()} does not run Q/DQ of opset {opset}")
    for config in (REFERENCE, DEPLOYMENT):
        found = Session(ir.to_proto(model), config).run(feed)["y"]
        assert np.abs(found - expected).max() < bound


@pytest.mark.parametrize("opset", [13, 17, 20])
def test_contrib_pairs_of_16_bits_at_an_older_opset(
    parse: Parse, apply_pass: Apply, opset: int
) -> None:
    model = parse(CHAIN, opset=opset)
    ranges, feed = _ranges(model), _feed()
    expected = Session(ir.to_proto(model)).run(feed)["y"]
    apply_pass(InsertQdq(ranges, "u16", domain="com.microsoft"), model)
    # The pairs of activations only: weights and biases have 8 and 32 bits.
    domains = {node.op_type: node.domain for node in model.graph if node.op_type != "Conv"}
    assert domains["QuantizeLinear"] == "com.microsoft"
    assert {
        node.domain
        for node in model.graph
        if node.op_type == "DequantizeLinear" and node.attributes
    } == {""}
    found = Session(ir.to_proto(model)).run(feed)["y"]
    assert np.abs(found - expected).max() < 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activations": "u16"}, "type of activations like u16 needs opset 21, the model has 17"),
        ({"weights": "s4"}, "type of weights like s4 needs .*or choose domain=com.microsoft"),
        ({"block": 32}, "scale a block needs opset 21.*run upgrade-opset{to=21} first$"),
        ({"block": 32, "domain": "com.microsoft"}, "scale a block needs opset 21"),
    ],
)
def test_newer_types_need_opset_21(parse: Parse, options: dict[str, Any], message: str) -> None:
    model = parse(CHAIN, opset=17)
    with pytest.raises(PassError, match=message):
        InsertQdq(_ranges(model), **options).run(model)


def test_symmetric_activations(parse: Parse, apply_pass: Apply) -> None:
    for activations, middle in (("u8", 128), ("s8", 0), ("u16", 32768), ("s16", 0)):
        model = parse(CHAIN)
        options: dict[str, Any] = {"activations": activations, "symmetric": True}
        apply_pass(InsertQdq(Ranges(dict(_ranges(model)) | {"x": (0.0, 5.0)}), **options), model)
        quantize = next(node for node in model.graph if node.op_type == "QuantizeLinear")
        limits = np.iinfo(constant_array(quantize.inputs[2]).dtype)  # type: ignore[union-attr]
        assert constant_array(quantize.inputs[2]) == middle
        assert constant_array(quantize.inputs[1]) == np.float32(5.0 / (limits.max - middle))


MATMUL = """
g (float[2,6] x) => (float[2,2] y)
<float[6,2] w = {7, 1, 3, 2, -1, 1, 0, 2, 14, 3, -7, 1}, float[2] b = {1, 2}>
{
  y = Gemm(x, w, b)
}
"""


def test_blocks(parse: Parse, apply_pass: Apply, assert_text: AssertText) -> None:
    model = parse(MATMUL)
    apply_pass(InsertQdq(Ranges({"x": (-1.0, 1.55)}), weights="s8", block=4), model)
    scales = [repr(float(np.float32(each / 127))) for each in (7, 2, 14, 3)]
    weights = [
        round(value / (scale / 127))
        for value, scale in zip(
            [7, 1, 3, 2, -1, 1, 0, 2, 14, 3, -7, 1],
            [7, 2] * 4 + [14, 3] * 2,
            strict=True,
        )
    ]
    assert_text(
        model,
        f"""
        g (float[2,6] x) => (float[2,2] y)
        <float[2] b = {{1, 2}}, float x_scale = {{0.01}}, uint8 x_zero_point = {{100}},
         int8[6,2] w_quantized = {{{", ".join(map(str, weights))}}},
         float[2,2] w_scale = {{{", ".join(scales)}}}, int8[2,2] w_zero_point = {{0, 0, 0, 0}}>
        {{
          x_quantized = QuantizeLinear(x, x_scale, x_zero_point)
          x_dequantized = DequantizeLinear(x_quantized, x_scale, x_zero_point)
          w_dequantized = DequantizeLinear<axis = 0, block_size = 4>
            (w_quantized, w_scale, w_zero_point)
          y = Gemm(x_dequantized, w_dequantized, b)
        }}""",
    )
    x = np.random.default_rng(0).uniform(-1, 1, size=(2, 6)).astype(np.float32)
    w = np.array([7, 1, 3, 2, -1, 1, 0, 2, 14, 3, -7, 1], np.float32).reshape(6, 2)
    found = Session(ir.to_proto(model)).run({"x": x})["y"]
    np.testing.assert_allclose(found, x @ w + [1, 2], atol=0.3)


@pytest.mark.parametrize(
    ("entry", "read"),
    [
        # What lies behind 16 bits goes on in 16 bits; another layer converts.
        ({"name": "one", "precision": 16}, ["UINT16", "UINT16", "UINT8", "UINT16", "UINT8"]),
        ({"name": "two", "precision": 16}, ["UINT8", "UINT8", "UINT16", "UINT16", "UINT8"]),
        ({"op_type": "Add", "activations": "u16"}, ["UINT8", "UINT8", "UINT8", "UINT16", "UINT8"]),
        ({"name": "p", "precision": 16}, ["UINT8", "UINT16", "UINT8", "UINT16", "UINT8"]),
    ],
)
def test_several_types_in_one_model(
    parse: Parse, apply_pass: Apply, entry: dict[str, Any], read: list[str]
) -> None:
    model = parse(CHAIN)
    ranges, feed = _ranges(model), _feed()
    expected = Session(ir.to_proto(model)).run(feed)["y"]
    result = apply_pass(InsertQdq(ranges, overrides=Overrides.from_entries([entry])), model)
    found = _codes_read(model)
    assert [found[name][0] for name in ("one", "p", "two", "a", "three")] == read
    assert found["a"] == [read[3]] * 2
    assert result.rules["requantize-activation"] >= 1
    for config in (REFERENCE, DEPLOYMENT):
        assert np.abs(Session(ir.to_proto(model), config).run(feed)["y"] - expected).max() < 2.0


def test_a_conversion_reads_the_codes_that_were_written(
    parse: Parse, apply_pass: Apply, assert_text: AssertText
) -> None:
    model = parse("""
    g (float[1,1,1,1] x) => (float[1,1,1,1] y)
    <float[1,1,1,1] w = {127}>
    {
      c = Conv(x, w)
      y = Conv(c, w)
    }""")
    overrides = Overrides.from_entries([{"name": "y", "precision": 16}])
    ranges = Ranges({"x": (0.0, 255.0), "c": (0.0, 65535.0), "y": (0.0, 65535.0)})
    result = apply_pass(InsertQdq(ranges, overrides=overrides), model)
    assert result.rules == {
        "quantize-activation": 3,
        "requantize-activation": 1,
        "quantize-constant": 2,
    }
    assert_text(
        model,
        """
        g (float[1,1,1,1] x) => (float[1,1,1,1] y)
        <float x_scale = {1}, uint8 x_zero_point = {0}, float c_scale = {257},
         uint8 c_zero_point = {0}, float c_scale_1 = {1}, uint16 c_zero_point_1 = {0},
         int8[1,1,1,1] w_quantized = {127}, float[1] w_scale = {1}, int8[1] w_zero_point = {0}>
        {
          x_quantized = QuantizeLinear(x, x_scale, x_zero_point)
          x_dequantized = DequantizeLinear(x_quantized, x_scale, x_zero_point)
          w_dequantized = DequantizeLinear<axis = 0>(w_quantized, w_scale, w_zero_point)
          c = Conv(x_dequantized, w_dequantized)
          c_quantized = QuantizeLinear(c, c_scale, c_zero_point)
          c_dequantized = DequantizeLinear(c_quantized, c_scale, c_zero_point)
          c_quantized_1 = QuantizeLinear(c_dequantized, c_scale_1, c_zero_point_1)
          c_dequantized_1 = DequantizeLinear(c_quantized_1, c_scale_1, c_zero_point_1)
          y_original = Conv(c_dequantized_1, w_dequantized)
          y_quantized = QuantizeLinear(y_original, c_scale_1, c_zero_point_1)
          y = DequantizeLinear(y_quantized, c_scale_1, c_zero_point_1)
        }""",
    )


def test_a_product_is_quantized_for_each_reader_by_itself(parse: Parse, apply_pass: Apply) -> None:
    model = parse("""
    g (float[1,2] x) => (float[1,2] y, float[1,2] z, float[1,2] s)
    <float[2,2] w = {1, 0, 0.5, 1}>
    {
      m = MatMul(x, w)
      [wide] y = MatMul(m, w)
      [narrow] z = MatMul(m, w)
      s = Sigmoid(m)
    }""")
    overrides = Overrides.from_entries([{"name": "wide", "precision": 16}])
    result = apply_pass(InsertQdq(_ranges(model, 2.0), overrides=overrides), model)
    assert result.rules["requantize-activation"] == 0
    found = _codes_read(model)
    assert found["wide"][0] == "UINT16"
    assert found["narrow"][0] == "UINT8"
    assert found["s"] == []
    sources = {
        node.inputs[0].name
        for node in model.graph
        if node.op_type == "QuantizeLinear" and node.inputs[0] is not None
    }
    assert sources == {"x", "m"}


def test_an_override_keeps_a_layer_in_float_with_a_remark(parse: Parse, apply_pass: Apply) -> None:
    model = parse(CHAIN)
    overrides = Overrides.from_entries([{"regex": "t.*", "precision": "float"}])
    result = apply_pass(InsertQdq(_ranges(model), overrides=overrides), model)
    assert [(each.node, each.reason) for each in result.remarks] == [
        ("two", "an override keeps it in float"),
        ("three", "an override keeps it in float"),
    ]


def test_overrides_of_weights(parse: Parse, apply_pass: Apply) -> None:
    model = parse(CHAIN)
    entries = [
        {"name": "one", "per_channel": False},
        {"name": "two", "weights": "s4"},
        {"name": "three", "weight_ranges": "hessian"},
    ]
    overrides = Overrides.from_entries(entries[:2])
    apply_pass(InsertQdq(_ranges(model), overrides=overrides), model)
    found = _codes_read(model)
    assert found["two"][1] == "INT4"
    one = next(node for node in model.graph if node.name == "one")
    maker = one.inputs[1].producer() if one.inputs[1] is not None else None
    assert maker is not None
    assert "axis" not in maker.attributes
    overrides = Overrides.from_entries(entries)
    with pytest.raises(UsageError, match="hessian needs the option moments"):
        InsertQdq(_ranges(parse(CHAIN)), overrides=overrides).run(parse(CHAIN))


@pytest.mark.parametrize("target", ["ort", "standard", "qdq", "integer"])
@pytest.mark.parametrize(
    "options",
    [
        {"activations": "u16"},
        {"activations": "s16", "weights": "s16", "symmetric": True},
        {"weights": "s4"},
        {"weights": "u4"},
        {"weights": "s8", "block": 2},
        {"overrides": Overrides.from_entries([{"name": "two", "precision": 16}])},
    ],
    ids=["u16", "s16", "s4", "u4", "blocks", "mixed"],
)
def test_what_is_folded_computes_the_same(
    parse: Parse, options: dict[str, Any], target: str
) -> None:
    model = parse(CHAIN)
    InsertQdq(_ranges(model), **options).run(model)
    feed = _feed()
    expected = Session(ir.to_proto(model)).run(feed)["y"]
    folded = Pipeline(parse_passes(folding(target))).run(model.clone()).model
    for config in (REFERENCE, DEPLOYMENT):
        found = Session(ir.to_proto(folded), config).run(feed)["y"]
        np.testing.assert_allclose(found, expected, atol=1e-5)
