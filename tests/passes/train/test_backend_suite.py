"""The training cases of ONNX's own backend suite, on the onnxruntime that everybody has."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxfold.passes.registry import parse_passes
from onnxfold.runtime.session import REFERENCE, Session

_NODE, _MODEL = "onnx.backend.test.case.node", "onnx.backend.test.case.model"
_CASES = (
    "test_adagrad",
    "test_adagrad_multiple",
    "test_adam",
    "test_adam_multiple",
    "test_gradient_of_add",
    "test_gradient_of_add_and_mul",
    "test_momentum",
    "test_momentum_multiple",
    "test_nesterov_momentum",
)
_PASSES = "upgrade-opset{to=18},lower-gradient,lower-optimizer"


def _cases() -> dict[str, Any]:
    # The cases register themselves where they are imported; all of them together take seconds.
    for name in ("adam", "adagrad", "momentum"):
        importlib.import_module(f"{_NODE}.{name}")
    importlib.import_module(f"{_MODEL}.gradient")
    node: list[Any] = importlib.import_module(_NODE)._NodeTestCases
    model: list[Any] = importlib.import_module(_MODEL)._SimpleModelTestCases
    return {case.name: case for case in (*node, *model) if case.name in _CASES}


@pytest.mark.parametrize("name", _CASES)
def test_backend_case(name: str) -> None:
    case = _cases()[name]
    proto: onnx.ModelProto = case.model
    model = ir.from_proto(proto)
    names = [value.name or "" for value in model.graph.inputs]
    for each in parse_passes(_PASSES):
        each.run(model)
    session = Session(model, REFERENCE)
    for inputs, wanted in case.data_sets:
        found = session.run(dict(zip(names, inputs, strict=True)))
        for got, expected in zip(found.values(), wanted, strict=True):
            assert got.shape == np.shape(expected)
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)
