"""Layers that 8 bits damage beyond the budget get activations of 16, where those are no loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

import onnxfold
from onnxfold.passes.constants import Array
from onnxfold.passes.serialization import model_bytes
from onnxfold.runtime.compiler.choice import WIDENED
from onnxfold.runtime.compiler.options import Target
from onnxfold.runtime.session import Session

FEATURES = 16


@pytest.fixture
def model(parse: Callable[..., ir.Model]) -> ir.Model:
    """Two products; of what the first reads one channel is large, and counts for nothing."""
    net = parse(
        f"""g (float[N,{FEATURES}] x, float[{FEATURES},16] v, float[16,4] w) => (float[N,4] y)
        {{ a = MatMul(x, v)  b = Relu(a)  y = MatMul(b, w) }}"""
    )
    rng = np.random.default_rng(0)
    for value in tuple(net.graph.inputs)[1:]:
        assert value.shape is not None
        weights = rng.normal(size=tuple(value.shape.numpy())).astype(np.float32)
        if value.name == "v":
            weights[0] = 0.0
        value.const_value = ir.tensor(weights, name=value.name)
        net.graph.inputs.remove(value)
        net.graph.register_initializer(value)
    return net


@pytest.fixture
def data() -> dict[str, Array]:
    x = np.random.default_rng(1).normal(size=(48, FEATURES)).astype(np.float32)
    x[:, 0] *= 1000
    return {"x": x}


def types_of_activations(model: ir.Model) -> list[str]:
    return sorted(
        node.outputs[0].dtype.name
        for node in model.graph
        if node.op_type == "QuantizeLinear" and node.outputs[0].dtype is not None
    )


def test_a_damaged_layer_gets_16_bits_for_its_activations(
    model: ir.Model, data: dict[str, Array]
) -> None:
    outcome = onnxfold.compile(model, data=data, target="qdq", budget="sqnr=25", preset="fast")
    kinds = types_of_activations(outcome.model)
    assert "UINT16" in kinds
    assert "UINT8" in kinds, "the others keep 8"
    old, new = Session(model), Session(outcome.model)
    expected: Array = old.run(data)["y"]
    found: Array = new.run(data)["y"]
    signal, noise = np.mean(expected**2), np.mean((found - expected) ** 2)
    assert 10 * np.log10(float(signal) / float(noise)) > 25
    remarks = {each["node"]: each["reason"] for each in outcome.report.to_json()["remarks"]}
    assert WIDENED in remarks.values()
    chosen = [row["candidate"] for row in outcome.report.decisions]
    assert any("1 most sensitive layer in 16 bits" in each for each in chosen)
    again = onnxfold.compile(model, data=data, target="qdq", budget="sqnr=25", plan=outcome.plan)
    assert model_bytes(again.model) == model_bytes(outcome.model)


@pytest.mark.parametrize("target", ["standard", "integer"])
def test_integers_of_16_bits_are_multiplied_in_halves(
    target: Target, model: ir.Model, data: dict[str, Array]
) -> None:
    outcome = onnxfold.compile(model, data=data, target=target, budget="sqnr=25", preset="fast")
    assert "UINT16" in types_of_activations(outcome.model)
    kinds = [node.op_type for node in outcome.model.graph]
    assert "MatMul" not in kinds
    assert kinds.count("MatMulInteger") >= 2
    expected: Array = Session(model).run(data)["y"]
    found: Array = Session(outcome.model).run(data)["y"]
    noise = np.mean((found - expected) ** 2)
    assert 10 * np.log10(float(np.mean(expected**2)) / float(noise)) > 25


@pytest.mark.parametrize(("target", "products"), [("integer", "MatMulInteger"), ("qdq", "MatMul")])
def test_the_mode_of_16_by_8_bits_is_folded_for_targets_that_can(
    target: Target, products: str, model: ir.Model, data: dict[str, Array]
) -> None:
    outcome = onnxfold.compile(model, data=data, target=target, budget="sqnr=20", mode="16x8")
    assert outcome.report.passed
    kinds = {node.op_type for node in outcome.model.graph}
    assert {"MatMul", "MatMulInteger"} & kinds == {products}
    assert set(types_of_activations(outcome.model)) == {"INT16"}


def test_what_is_made_for_onnx_runtime_goes_to_float(
    model: ir.Model, data: dict[str, Array]
) -> None:
    outcome = onnxfold.compile(model, data=data, budget="sqnr=25", preset="fast", keep_slower=True)
    assert "UINT16" not in types_of_activations(outcome.model)
    remarks = {each["node"]: each["reason"] for each in outcome.report.to_json()["remarks"]}
    assert WIDENED not in remarks.values()
