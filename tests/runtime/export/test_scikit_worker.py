"""What scikit-learn's front end does without scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser

from onnxfold.runtime.export.proof import EstimatorGate, prove
from onnxfold.runtime.export.workers import scikit
from onnxfold.runtime.export.workers.protocol import FrontEndError, Request


def test_pickles_are_not_read_without_trust(tmp_path: Path) -> None:
    with pytest.raises(FrontEndError, match="--trust-pickle") as caught:
        scikit.export(Request("pickle", str(tmp_path / "none"), 18), tmp_path)
    assert caught.value.fault == "usage"


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FrontEndError, match="of kind tflite"):
        scikit.export(Request("tflite", "p", 18), tmp_path)


def test_samples_are_of_several_magnitudes() -> None:
    found = scikit.rows(np.random.default_rng(0), 5)
    assert found.shape == (64, 5)
    assert found.dtype == np.float32
    assert np.abs(found).max() > 50
    np.testing.assert_array_equal(found[::2], np.rint(found[::2]))


def _labels(*wanted: int) -> bool:
    text = """
    <ir_version: 8, opset_import: ["" : 18]>
    g (int64[N] x) => (int64[N] label) { label = Identity (x) }
    """
    model = ir.from_proto(parser.parse_model(text))
    feeds = [{"x": np.array([1, 2, 3])}]
    expected = [{"label": np.array(wanted)}]
    return prove(model, "p", feeds, expected, gate=EstimatorGate()).verdict.passed


def test_a_label_is_not_near_another() -> None:
    assert _labels(1, 2, 3)
    assert not _labels(1, 2, 4)
