"""integer-io: integer inputs and outputs, what is recorded of them, and comparing all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxfold import api
from onnxfold.passes.base import Contract, Pass, PassResult
from onnxfold.passes.errors import UsageError
from onnxfold.passes.io_types import KEY, IoType, float_edges, read_io_types, with_float_io
from onnxfold.passes.pipeline import Pipeline
from onnxfold.passes.presets import folding
from onnxfold.passes.quantize.insert_qdq import InsertQdq
from onnxfold.passes.quantize.integer_io import IntegerIo
from onnxfold.passes.quantize.ranges import Ranges
from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.progress import Silent
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session
from onnxfold.runtime.verify.compare import compare_models

Array = npt.NDArray[Any]
Parse = Callable[..., ir.Model]
Apply = Callable[[Pass | str, ir.Model], PassResult]
AssertText = Callable[[ir.Model, str], None]

QUANTIZED = """
g (float[N,2] x) => (float[N,2] y)
<float s = {0.5}, uint8 z = {128}, float t = {0.25}, int8 m = {-3}>
{
  q = QuantizeLinear(x, s, z)
  d = DequantizeLinear(q, s, z)
  r = Relu(d)
  c = QuantizeLinear(r, t, m)
  y = DequantizeLinear(c, t, m)
}
"""


def test_edges_are_removed_and_recorded(
    parse: Parse, apply_pass: Apply, assert_text: AssertText
) -> None:
    model = parse(QUANTIZED)
    result = apply_pass("integer-io", model)
    assert result.rules == {"convert-input": 1, "convert-output": 1, "record-types": 1}
    assert model.metadata_props[KEY] == (
        '{"x": {"type": "UINT8", "scale": 0.5, "zero_point": 128}, '
        '"y": {"type": "INT8", "scale": 0.25, "zero_point": -3}}'
    )
    assert str(read_io_types(model)["x"]) == "uint8, real = 0.5 * (q - 128)"
    del model.metadata_props[KEY]
    assert_text(
        model,
        """
        g (uint8[N,2] x) => (int8[N,2] y)
        <float s = {0.5}, uint8 z = {128}, float t = {0.25}, int8 m = {-3}>
        {
          d = DequantizeLinear(x, s, z)
          r = Relu(d)
          y = QuantizeLinear(r, t, m)
        }""",
    )


def test_what_else_reads_the_edges_reads_real_numbers(parse: Parse, apply_pass: Apply) -> None:
    model = parse("""
    g (float[2] x) => (float[2] y, float[2] n, float[2] a)
    <float s = {0.5}, uint8 z = {128}>
    {
      q = QuantizeLinear(x, s, z)
      d = DequantizeLinear(q, s, z)
      a = Abs(x)
      r = Neg(d)
      c = QuantizeLinear(r, s, z)
      y = DequantizeLinear(c, s, z)
      n = Neg(y)
    }""")
    result = apply_pass("integer-io", model)
    assert [(each.node, each.reason) for each in result.remarks] == [
        ("n", "output 'n' stays float32: it is computed as a real number"),
        ("a", "output 'a' stays float32: it is computed as a real number"),
    ]
    codes = np.array([126, 133], np.uint8)
    for config in (REFERENCE, DEPLOYMENT):
        found = Session(ir.to_proto(model), config).run({"x": codes})
        np.testing.assert_array_equal(found["y"], np.array([130, 123], np.uint8))
        np.testing.assert_array_equal(found["n"], np.array([-1.0, 2.5], np.float32))
        np.testing.assert_array_equal(found["a"], np.array([1.0, 2.5], np.float32))


def test_ranges_give_types_to_what_is_not_quantized(parse: Parse, apply_pass: Apply) -> None:
    model = parse(
        "g (float[2] x, int64[2] i) => (float[2] y, int64[2] j) { y = Neg(x) j = Identity(i) }"
    )
    ranges = Ranges({"x": (-1.0, 1.55), "y": (-1.55, 1.0)})
    apply_pass(IntegerIo(ranges, "s8"), model)
    assert [value.dtype for value in (*model.graph.inputs, *model.graph.outputs)] == [
        *(ir.DataType.INT8, ir.DataType.INT64, ir.DataType.INT8, ir.DataType.INT64)
    ]
    assert read_io_types(model)["x"].zero_point == -28
    feed = {"x": np.array([-28, 100], np.int8), "i": np.array([1, 2])}
    found = Session(ir.to_proto(model)).run(feed)
    zero_point = read_io_types(model)["y"].zero_point
    np.testing.assert_array_equal(found["y"], np.array([zero_point, zero_point - 128], np.int8))


def test_skip(parse: Parse, apply_pass: Apply) -> None:
    model = parse(QUANTIZED)
    apply_pass("integer-io{skip=y}", model)
    assert [value.dtype for value in (*model.graph.inputs, *model.graph.outputs)] == [
        *(ir.DataType.UINT8, ir.DataType.FLOAT)
    ]
    with pytest.raises(UsageError, match="no input and no output 'yy'; did you mean 'y'"):
        IntegerIo(skip=("yy",)).run(model)


def test_an_output_that_is_an_input_or_two_outputs(parse: Parse, apply_pass: Apply) -> None:
    model = parse("""
    g (float[2] x) => (float[2] y, float[2] w)
    <float s = {0.5}, uint8 z = {128}>
    {
      q = QuantizeLinear(x, s, z)
      y = DequantizeLinear(q, s, z)
      w = DequantizeLinear(q, s, z)
    }""")
    apply_pass("integer-io", model)
    codes = np.array([1, 2], np.uint8)
    found = Session(ir.to_proto(model)).run({"x": codes})
    np.testing.assert_array_equal(found["y"], codes)
    np.testing.assert_array_equal(found["w"], codes)


def test_with_float_io_computes_what_was_computed_before(parse: Parse, apply_pass: Apply) -> None:
    model = parse(QUANTIZED)
    x = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32) * 5
    expected = Session(ir.to_proto(model)).run({"x": x})["y"]
    names = float_edges(model)
    apply_pass("integer-io", model)
    restored = with_float_io(model, names)
    assert [v.dtype for v in model.graph.inputs] == [ir.DataType.UINT8]
    np.testing.assert_array_equal(Session(ir.to_proto(restored)).run({"x": x})["y"], expected)
    assert with_float_io(model, ()) is model


CONV = """
g (float[1,2,4,4] x) => (float[1,2,4,4] y)
<float[2,2,3,3] w = {1,0,0,0.5,1,0,0,1,0, 0,0,1,0.5,1,0,0,1,0,
                     1,0,0,0.5,1,0,0,1,0, 0,0,1,0.5,1,0,0,1,0}>
{
  a = Conv<pads = [1,1,1,1]>(x, w)
  b = Relu(a)
  y = Conv<pads = [1,1,1,1]>(b, w)
}
"""
RANGES = Ranges({"x": (-3.0, 3.0), "b": (0.0, 20.0), "y": (-100.0, 100.0)})


@pytest.mark.parametrize("target", ["ort", "standard", "qdq", "integer"])
@pytest.mark.parametrize("activations", ["u8", "s8"])
def test_folds_with_integer_edges_and_compares_with_the_original(
    parse: Parse, target: str, activations: Any
) -> None:
    original = parse(CONV)
    passes = (InsertQdq(RANGES, activations), IntegerIo(), *parse_passes(folding(target)))
    model = Pipeline(passes).run(original.clone()).model
    kind = ir.DataType.UINT8 if activations == "u8" else ir.DataType.INT8
    assert [v.dtype for v in (*model.graph.inputs, *model.graph.outputs)] == [kind, kind]
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.uniform(-2, 2, size=(1, 2, 4, 4)).astype(np.float32)} for _ in range(4)]
    comparison = compare_models(original, model, feeds, Contract.APPROXIMATE)
    assert comparison.verdict.passed, comparison.verdict.reasons
    if target in ("standard", "integer"):
        ops = {node.op_type for node in model.graph}
        assert not ops & {"QuantizeLinear", "DequantizeLinear", "Conv", "Relu"}
    reverse = compare_models(
        model, model, [{"x": np.ones((1, 2, 4, 4), kind.numpy())}], Contract.EXACT
    )
    assert reverse.verdict.passed


def test_the_gates_of_a_pipeline_compare_over_a_change_of_types(parse: Parse) -> None:
    data = {"x": np.random.default_rng(0).uniform(-2, 2, (6, 1, 2, 4, 4)).astype(np.float32)}
    feeds = [{"x": array} for array in data["x"]]
    passes = (InsertQdq(RANGES), IntegerIo(), *parse_passes(folding("ort")))
    outcome = api.run_passes(ir.to_proto(parse(CONV)), passes, data=feeds, progress=Silent())
    assert outcome.report.passed
    half = api.run_passes(
        ir.to_proto(parse(CONV)), "infer-shapes,convert-float16{io=float16}", data=feeds
    )
    assert half.report.passed
    assert str(IoType(ir.DataType.FLOAT16)) == "float16"
