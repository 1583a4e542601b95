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
from onnxfold.passes.errors import (
    BrokenContractError,
    ExecutionError,
    NotEquivalentError,
    PassError,
)
from onnxfold.passes.fold.fold_qdq import FoldQdq
from onnxfold.runtime.compiler import driver
from onnxfold.runtime.compiler.choice import FLOAT, ORIGINAL, Latency
from onnxfold.runtime.compiler.clock import Clock
from onnxfold.runtime.compiler.plan import NOT_HELD, Plan
from onnxfold.runtime.report.summary import summary


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
    outcomes = {each["candidate"]: each["outcome"] for each in outcome.report.decisions}
    assert outcomes.pop(FLOAT) == "chosen"
    assert NOT_HELD in outcomes.values()
    assert "chosen" not in outcomes.values()


def test_slow_float_is_no_fallback(
    model: ir.Model, data: dict[str, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where optimizing made the float model slower, what came in goes out."""

    def clock(models: Mapping[str, ir.Model]) -> Mapping[str, Latency]:
        times = {ORIGINAL: 1.0, FLOAT: 1.1}
        return {name: Latency(1.0, times.get(name, 0.5)) for name in models}

    def make(*_: Any) -> Clock:
        return clock

    monkeypatch.setattr(driver, "make_clock", make)
    monkeypatch.setattr(driver, "make_one_thread_clock", make)
    monkeypatch.setattr(driver, "_prove", refusing(NotEquivalentError("SQNR is 29")))
    outcome = onnxfold.compile(model, data=data, preset="fast")
    assert not any(each["outcome"] == "chosen" for each in outcome.report.decisions)
    said = next(summary(outcome.report.to_json()))
    assert said == "latency: the model stays as it came, what was faster does not hold"
    with pytest.raises(NotEquivalentError, match="SQNR is 29"):
        onnxfold.compile(model, data=data, preset="fast", budget="faster=1.5,sqnr=20")


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
    "error",
    [
        BrokenContractError("pass fold-qdq broke its contract", "fold-qdq"),
        PassError("pass fold-qdq failed"),
        IndexError("5 is out of range"),
        ExecutionError("after pass fold-qdq: no kernel"),
    ],
)
def test_defects_are_said_and_cost_the_integers_alone(
    model: ir.Model,
    data: dict[str, Array],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    monkeypatch.setattr(driver, "make_clock", fast_clock)
    monkeypatch.setattr(driver, "make_one_thread_clock", fast_clock)
    monkeypatch.setattr(driver, "_prove", refusing(error))
    outcome = onnxfold.compile(model, data=data, preset="fast")
    assert [node.op_type for node in outcome.model.graph] == ["MatMul"]
    (said,) = [each for each in outcome.report.remarks if str(error) in each.reason]
    assert said.reason.startswith("a defect of onnxfold: what was chosen does not hold")
    assert said.advice.startswith("report it")


def test_a_missed_budget_of_a_pass_is_no_defect(
    model: ir.Model, data: dict[str, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "make_clock", fast_clock)
    monkeypatch.setattr(driver, "make_one_thread_clock", fast_clock)
    missed = BrokenContractError("pass quantize-dynamic broke its contract", "quantize-dynamic")
    monkeypatch.setattr(driver, "_prove", refusing(missed))
    outcome = onnxfold.compile(model, data=data, preset="fast")
    (said,) = [each for each in outcome.report.remarks if str(missed) in each.reason]
    assert said.reason.startswith("what was chosen does not hold")


def test_what_cannot_be_built_is_said_and_left_out(
    model: ir.Model, data: dict[str, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("an index is wrong")

    monkeypatch.setattr(FoldQdq, "apply", fail)
    monkeypatch.setattr(driver, "make_clock", fast_clock)
    monkeypatch.setattr(driver, "make_one_thread_clock", fast_clock)
    outcome = onnxfold.compile(model, data=data, preset="fast")
    reasons = [each.reason for each in outcome.report.remarks]
    assert any(
        "could not be built: pass fold-qdq failed: ValueError: an index is wrong" in each
        for each in reasons
    ), reasons
    with pytest.raises(PassError, match="an index is wrong"):
        onnxfold.compile(model, data=data, preset="fast", keep_slower=True)


def test_what_was_asked_for_and_misses_the_budget_is_an_error(
    model: ir.Model, data: dict[str, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "make_clock", fast_clock)
    monkeypatch.setattr(driver, "make_one_thread_clock", fast_clock)
    monkeypatch.setattr(driver, "_prove", refusing(NotEquivalentError("SQNR is 29")))
    with pytest.raises(NotEquivalentError, match="SQNR is 29"):
        onnxfold.compile(model, data=data, preset="fast", keep_slower=True)
