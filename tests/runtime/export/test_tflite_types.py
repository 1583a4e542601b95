"""Float16 weights stay narrow; 16-bit activations get the opset and the biases that ONNX has."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxfold.runtime.export.workers.tflite_types import admit_wide_codes, store_halves
from onnxfold.runtime.session import REFERENCE, Session

_WIDE = """
<ir_version: 8, opset_import: ["" : 18]>
g (float[1,2] x) => (float[1,2] y)
<float s = {0.5}, int16 z = {0}, float t = {0.25}, int64[2] bias = {-3, LARGE}, int64 none = {0}>
{
    codes = QuantizeLinear (x, s, z)
    real = DequantizeLinear (codes, s, z)
    added = DequantizeLinear (bias, t, none)
    y = Add (real, added)
}
"""


def test_halves_are_stored_as_such() -> None:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        g (float[2] x) => (float[4] y)
        <float[2] half = {1.5, -0.25}, float[2] more = {0.1, 2.0}, float one = {1.0},
         float[1] twice = {2.0}>
        { a = Mul (x, half)  b = Add (a, more)  c = Mul (b, one)
          y = Resize <mode = "nearest"> (c, , twice) }""")
    feed = {"x": np.array([3, 4], np.float32)}
    before = Session(model, REFERENCE).run(feed)["y"]
    assert store_halves(model) == 1
    onnx.checker.check_model(model, full_check=True)
    narrow = {each.name for each in model.graph.initializer if each.data_type == 10}
    assert narrow == {"half_half"}
    np.testing.assert_array_equal(Session(model, REFERENCE).run(feed)["y"], before)


@pytest.mark.parametrize(("large", "kept"), [(5, True), (2**31, False)])
def test_wide_codes_need_opset_21_and_biases_of_32_bits(large: int, kept: bool) -> None:
    model = parser.parse_model(_WIDE.replace("LARGE", str(large)))
    assert admit_wide_codes(model)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == 21
    types = {node.op_type for node in model.graph.node if "added" in node.output}
    assert types == ({"DequantizeLinear"} if kept else set())
    x = np.array([[1.5, -2]], np.float32)
    (found,) = Session(model, REFERENCE).run({"x": x}).values()
    np.testing.assert_array_equal(found, x + np.array([-0.75, large / 4], np.float32))


def test_codes_of_8_bits_stay_as_they_are() -> None:
    model = parser.parse_model(_WIDE.replace("LARGE", "1").replace("int16", "int8"))
    assert not admit_wide_codes(model)
    assert numpy_helper.to_array(model.graph.initializer[3]).dtype == np.int64
