"""Weights of GRU and RNN in int8: a quarter of the room, the same operator behind Cast and Mul."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import onnxfold
from onnxfold.passes.base import PassResult
from onnxfold.passes.constants import Array
from onnxfold.passes.serialization import model_bytes
from onnxfold.runtime.profile import optimized_op_census
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session

Apply = Callable[..., PassResult]
GATES = {"GRU": 3, "RNN": 1, "LSTM": 4}
UNITS, INPUTS = 32, 24


def network(parse: Callable[..., ir.Model], op_type: str, opset: int = 17) -> ir.Model:
    """One bidirectional operator, its gates of different size."""
    model: ir.Model = parse(
        f"""g (float[S,N,{INPUTS}] x) => (float[S,2,N,{UNITS}] y)
        {{ y = {op_type}<hidden_size = {UNITS}, direction = "bidirectional">(x, w, r, b) }}""",
        opset=opset,
    )
    rng = np.random.default_rng(0)
    rows = GATES[op_type] * UNITS
    node = model.graph[0]
    sizes = ((1, (2, rows, INPUTS)), (2, (2, rows, UNITS)), (3, (2, 2 * rows)))
    for index, shape in sizes:
        values = rng.normal(0, 0.2, shape).astype(np.float32)
        values[:, : rows // 2] *= 0.1
        value = node.inputs[index]
        assert value is not None
        value.const_value = ir.tensor(values, name=value.name)
        model.graph.register_initializer(value)
    return model


def decibels(expected: Array, found: Array) -> float:
    signal, noise = np.mean(expected**2), np.mean((found - expected) ** 2)
    return float(10 * np.log10(float(signal) / float(noise)))


@pytest.mark.parametrize(
    ("pass_", "op_type"),
    [
        ("quantize-dynamic", "GRU"),
        ("quantize-dynamic", "RNN"),
        ("quantize-weights", "GRU"),
        ("quantize-weights{weight-ranges=max}", "LSTM"),
    ],
)
def test_weights_are_stored_a_scale_a_row(
    parse: Callable[..., ir.Model], apply_pass: Apply, pass_: str, op_type: str
) -> None:
    model = network(parse, op_type, opset=11)
    expected = {config: Session(model, config) for config in (REFERENCE, DEPLOYMENT)}
    before = len(model_bytes(model))
    result = apply_pass(pass_, model)
    assert result.rules == {"store-recurrent-weights": 1}
    assert [node.op_type for node in model.graph] == ["Cast", "Mul", "Cast", "Mul", op_type]
    codes = [node.inputs[0] for node in model.graph if node.op_type == "Cast"]
    assert [value and value.dtype for value in codes] == [ir.DataType.INT8] * 2
    assert len(model_bytes(model)) < 0.4 * before
    x = np.random.default_rng(1).normal(size=(6, 2, INPUTS)).astype(np.float32)
    for config, session in expected.items():
        assert decibels(session.run({"x": x})["y"], Session(model, config).run({"x": x})["y"]) > 35
    census = optimized_op_census(model)
    assert set(census) == {op_type}, "the weights are float numbers once it is loaded"


def test_the_same_codes_are_kept_when_constants_are_folded(
    parse: Callable[..., ir.Model], apply_pass: Apply
) -> None:
    model = network(parse, "GRU")
    apply_pass("quantize-dynamic", model)
    size = len(model_bytes(model))
    apply_pass("fold-constants", model)
    assert len(model_bytes(model)) <= size


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = GRU<hidden_size = 8>(x, v, r)", "its weights are computed at run time"),
        ("y = GRU<hidden_size = 8>(x, w, r)", ""),
    ],
)
def test_what_cannot_be_stored_or_is_small_stays(
    parse: Callable[..., ir.Model], apply_pass: Apply, body: str, reason: str
) -> None:
    model = parse(
        f"""g (float[s,n,8] x, float[1,24,8] v) => (float[s,1,n,8] y)
        <float[1,24,8] w = {{{", ".join(["0.1"] * 192)}}},
         float[1,24,8] r = {{{", ".join(["0.2"] * 192)}}}> {{ {body} }}"""
    )
    result = apply_pass("quantize-dynamic", model)
    assert not result.modified
    wanted = [f"it stays in float: {reason}"] if reason else []
    assert [each.reason for each in result.remarks] == wanted


@pytest.mark.parametrize("mode", ["dynamic-range", "int4-weights"])
def test_the_modes_make_a_smaller_file(parse: Callable[..., ir.Model], mode: Any) -> None:
    model = network(parse, "GRU")
    data = {"x": np.random.default_rng(2).normal(size=(4, 5, 3, INPUTS)).astype(np.float32)}
    feeds = [{"x": each} for each in data["x"]]
    outcome = onnxfold.compile(model, data=feeds, mode=mode)
    assert len(model_bytes(outcome.model)) < 0.35 * len(model_bytes(model))
    expected, found = (Session(each).run(feeds[0])["y"] for each in (model, outcome.model))
    assert decibels(expected, found) > 35
