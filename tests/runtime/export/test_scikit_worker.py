"""What scikit-learn's front end does without scikit-learn."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser

from onnxfold.runtime.export.proof import EstimatorGate, prove
from onnxfold.runtime.export.workers import scikit
from onnxfold.runtime.export.workers.protocol import FrontEndError, Request
from onnxfold.runtime.export.workers.scikit_steps import steps_of, values_inside


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


class _Doubled:
    """An estimator as scikit-learn has them."""

    def get_params(self) -> dict[str, object]:
        return {}

    def transform(self, x: Any) -> Any:
        return 2 * x


class _Chain(_Doubled):
    def __init__(self, *parts: _Doubled) -> None:
        self.steps = [(f"step{place}", part) for place, part in enumerate(parts)]

    def transform(self, x: Any) -> Any:
        for _, part in self.steps:
            x = part.transform(x)
        return x


def test_steps_are_named_and_overheard() -> None:
    parts = _Doubled(), _Doubled(), _Doubled()
    chain = _Chain(parts[0], _Chain(parts[1]), parts[2])
    tensors = [SimpleNamespace(onnx_name=name) for name in ("a", "b", "out")]
    operators = {
        name.onnx_name: SimpleNamespace(raw_operator=part, outputs=[name])
        for name, part in zip(tensors, parts, strict=True)
    }
    text = "g (float[2] x) => (float[2] out) { a = Add(x, x) b = Add(a, a) out = Add(b, b) }"
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {text}')
    topology = SimpleNamespace(scopes=[SimpleNamespace(operators=operators)])
    steps = steps_of(chain, topology, model)
    assert [(each.name, each.tensor) for each in steps] == [
        ("step0 (_Doubled)", "a"),
        ("step1__step0 (_Doubled)", "b"),
    ]
    x = np.ones(2)
    found = values_inside(steps, ["b"], lambda: chain.transform(x))
    assert list(found) == ["b"]
    np.testing.assert_array_equal(found["b"], np.full(2, 4, np.float32))
    assert not any("transform" in vars(part) for part in parts)
