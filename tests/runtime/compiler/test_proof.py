"""What was chosen and does not hold where it is proven gives way to the float model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import onnxfold
from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.constants import Array
from onnxfold.passes.errors import BrokenContractError, NotEquivalentError
from onnxfold.runtime.compiler import driver
from onnxfold.runtime.compiler.choice import FLOAT, ORIGINAL, Latency
from onnxfold.runtime.compiler.clock import Clock
from onnxfold.runtime.compiler.plan import Plan


@pytest.fixture
def model(parse: Callable[..., ir.Model]) -> ir.Model:
    net = parse("g (float[N,256] x, float[256,256] w) => (float[N,256] y) { y = MatMul(x, w) }")
    weights = net.graph.inputs[1]
    values = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
    weights.const_value = ir.tensor(values, name="w")
    net.graph.inputs.remove(weights)
    net.graph.register_initializer(weights)
    return net


@pytest.fixture
def data() -> dict[str, Array]:
    return {"x": np.random.default_rng(1).normal(size=(16, 256)).astype(np.float32)}


def fast_clock(*_: Any) -> Clock:
    """A clock by which everything quantized takes half the time."""

    def clock(models: Mapping[str, ir.Model]) -> Mapping[str, Latency]:
        return {name: Latency(1.0, 1.0 if name in (ORIGINAL, FLOAT) else 0.5) for name in models}

    return clock


def refusing(error: Exception) -> Callable[..., Any]:
    """A proof that no quantized model passes."""
    prove: Callable[..., Any] = vars(driver)["_prove"]

    def refuse(model: ir.Model, plan: Plan, *rest: Any) -> Any:
        if any(each.contract is Contract.APPROXIMATE for each in plan.passes):
            raise error
        return prove(model, plan, *rest)

    return refuse


def test_float_takes_the_place_of_what_is_not_proven(
    model: ir.Model, data: dict[str, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "make_clock", fast_clock)
    monkeypatch.setattr(driver, "make_one_thread_clock", fast_clock)
    monkeypatch.setattr(driver, "_prove", refusing(NotEquivalentError("SQNR is 29")))
    outcome = onnxfold.compile(model, data=data, preset="fast")
    assert [node.op_type for node in outcome.model.graph] == ["MatMul"]
    reasons = [each["reason"] for each in outcome.report.to_json()["remarks"]]
    assert "what was chosen does not hold where it is proven: SQNR is 29" in reasons
    assert "what was chosen for it misses the budget where it is proven (measured)" in reasons


def test_the_way_to_the_float_model_is_proven_once(
    model: ir.Model, data: dict[str, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "make_clock", fast_clock)
    monkeypatch.setattr(driver, "make_one_thread_clock", fast_clock)
    run: list[str] = []
    verified: Callable[..., Any] = vars(driver)["run_verified"]

    def noting(model: ir.Model, passes: Sequence[Pass], *rest: Any, **options: Any) -> Any:
        run.extend(each.name for each in passes)
        return verified(model, passes, *rest, **options)

    monkeypatch.setattr(driver, "run_verified", noting)
    outcome = onnxfold.compile(model, data=data, preset="fast")
    rows = [each.text.partition("{")[0] for each in outcome.report.passes]
    assert any(each.startswith("quantize-") or each == "insert-qdq" for each in run)
    assert "fuse-softmax" not in run
    assert rows.count("fuse-softmax") == 1
    assert rows[-len(run) :] == run


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (BrokenContractError("a pass is wrong", "fold-qdq"), {}),
        (NotEquivalentError("SQNR is 29"), {"keep_slower": True}),
    ],
)
def test_wrong_passes_and_what_was_asked_for_are_errors(
    model: ir.Model,
    data: dict[str, Array],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    options: dict[str, Any],
) -> None:
    monkeypatch.setattr(driver, "make_clock", fast_clock)
    monkeypatch.setattr(driver, "make_one_thread_clock", fast_clock)
    monkeypatch.setattr(driver, "_prove", refusing(error))
    with pytest.raises(NotEquivalentError, match=str(error)):
        onnxfold.compile(model, data=data, preset="fast", **options)
