"""What tf2onnx writes and ONNX does not have, and names that reach into bodies."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

from onnxfold.runtime.export.workers.protocol import FrontEndError
from onnxfold.runtime.export.workers.tf2onnx_models import (
    check_operators,
    rename_tensors,
    write_model,
)
from onnxfold.runtime.loading import load_model
from onnxfold.runtime.session import Session

_HEAD = '<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]>'


def _model(text: str) -> onnx.ModelProto:
    return parser.parse_model(f"{_HEAD} {text}")


def _repaired(text: str) -> onnx.ModelProto:
    model = _model(text)
    check_operators(model, lambda _: {})
    return model


def test_erfc_becomes_erf_of_its_own_type_in_a_body() -> None:
    model = _repaired("""
        g (float16[2] x, bool c) => (float16[2] y) {
            y = If (c) <
                then_branch = a () => (float16[2] p) { p = Erfc (x) },
                else_branch = b () => (float16[2] q) { q = Neg (x) }
            >
        }""")
    feed = {"x": np.array([0.5, -1], np.float16), "c": np.array(True)}
    found = Session(model).run(feed)["y"]
    np.testing.assert_allclose(found, [0.4795, 1.8427], rtol=2e-3)


def _gelu(x: Any) -> Any:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def _gelu_by_tanh(x: Any) -> Any:
    return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _limited(x: Any) -> Any:
    return np.clip(x, -1, 1)


@pytest.mark.parametrize(
    ("operator", "wanted"),
    [
        ("Expm1", np.expm1),
        ("Log1p", np.log1p),
        ("TFL_RELU_N1_TO_1", _limited),
        ("TFL_GELU", _gelu),
        ("TFL_GELU <approximate = 1>", _gelu_by_tanh),
    ],
)
def test_operators_of_tensorflow_are_taken_apart(operator: str, wanted: Any) -> None:
    model = _repaired(f"g (float[4] x) => (float[4] y) {{ y = {operator} (x) }}")
    x = np.array([-0.9, -0.2, 0.4, 2.5], np.float32)
    np.testing.assert_allclose(Session(model).run({"x": x})["y"], wanted(x), rtol=2e-6)


def test_range_of_onnx_runtime_becomes_that_of_onnx() -> None:
    model = _repaired("""
        g (int64 n) => (int64[k] y) <int64 zero = {0}, int64 one = {1}> {
            y = com.microsoft.Range (zero, n, one)
        }""")
    assert [node.domain for node in model.graph.node] == [""]
    found = Session(model).run({"n": np.array(3, np.int64)})["y"]
    np.testing.assert_array_equal(found, [0, 1, 2])


def test_an_operator_that_onnx_lacks_is_found_in_a_body() -> None:
    with pytest.raises(FrontEndError, match="ONNX has no operator for Digamma"):
        _repaired("""
            g (float[2] x, bool c) => (float[2] y) {
                y = If (c) <
                    then_branch = a () => (float[2] p) { p = Digamma (x) },
                    else_branch = b () => (float[2] q) { q = Neg (x) }
                >
            }""")


def test_names_reach_into_bodies_and_constants() -> None:
    model = _model("""
        g (float[2] "x:0", bool c) => (float[2] "Identity:0", float[2] "Identity_1:0")
        <float[2] "Identity_1:0" = {5, 6}> {
            "Identity:0" = If (c) <
                then_branch = a () => (float[2] "output:0") { "output:0" = Neg ("x:0") },
                else_branch = b () => (float[2] "x") { "x" = Abs ("x:0") }
            >
        }""")
    rename_tensors(model, {"x:0": "x", "Identity:0": "first", "Identity_1:0": "second"})
    session = Session(model)
    assert [each.name for each in session.outputs] == ["first", "second"]
    found = session.run({"x": np.array([1, -2], np.float32), "c": np.array(False)})
    np.testing.assert_array_equal(found["first"], [1, 2])
    np.testing.assert_array_equal(found["second"], [5, 6])


def test_outputs_of_unknown_rank_are_written_and_read(tmp_path: Path) -> None:
    model = _model("g (float[a, b] x, int64[n] axes) => (float[a] y) { y = ReduceSum (x, axes) }")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    write_model(model, tmp_path)
    loaded = load_model(tmp_path / "model.onnx")
    assert loaded.graph.outputs[0].shape is None
    found = Session(loaded).run({"x": np.eye(2, dtype=np.float32), "axes": np.array([0])})["y"]
    assert found.shape == (1, 2)
