"""Which fold is kept: by latency, by the budget, and never one that is slower than what came."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from onnxfold.passes.errors import UsageError
from onnxfold.runtime.compiler.choice import Latency
from onnxfold.runtime.compiler.fold_choice import (
    AS_IT_CAME,
    BY_COSTS,
    REFERENCE,
    FoldChoice,
    FoldSubject,
    choose_fold,
)
from onnxfold.runtime.trial import feeds_for
from onnxfold.runtime.verify.budget import Budget

_THROUGHOUT = "integer kernels throughout"
_DYNAMIC = "LSTMs quantized at every step"
_UNROUNDED = "activations not rounded"


@pytest.fixture
def choose(fixtures_dir: Path) -> Callable[..., tuple[FoldChoice, list[str]]]:
    """``choose({name: ratio}, ...)``: the choice when models are that fast; and what was timed."""
    model = ir.load(fixtures_dir / "tiny_mobilenet.onnx")

    def make(ratios: Mapping[str, float], **options: Any) -> tuple[FoldChoice, list[str]]:
        timed: list[str] = []

        def clock(models: Mapping[str, ir.Model]) -> Mapping[str, Latency]:
            timed.extend(models)
            return {name: Latency(ratios.get(name, 2.0), ratios.get(name, 2.0)) for name in models}

        subject = FoldSubject(model, feeds_for(model, None), clock, **options)
        return choose_fold(subject), timed

    return make


def test_the_fastest_is_kept(choose: Callable[..., tuple[FoldChoice, list[str]]]) -> None:
    choice, timed = choose({AS_IT_CAME: 1.0, BY_COSTS: 0.5, _THROUGHOUT: 0.8})
    assert choice.name == BY_COSTS
    assert [pass_.name for pass_ in choice.passes].count("fold-qdq") == 1
    assert timed[0] == AS_IT_CAME, "ratios are to the first"
    outcomes = {row["candidate"]: row["outcome"] for row in choice.decisions}
    assert outcomes[BY_COSTS] == "chosen"
    assert outcomes[AS_IT_CAME] == "slower than the chosen"


def test_a_reference_is_timed_and_not_chosen(
    choose: Callable[..., tuple[FoldChoice, list[str]]], fixtures_dir: Path
) -> None:
    reference = ir.load(fixtures_dir / "tiny_mobilenet_float.onnx")
    ratios = {AS_IT_CAME: 1.0, BY_COSTS: 0.5, REFERENCE: 0.25}
    choice, timed = choose(ratios, reference=reference)
    assert choice.name == BY_COSTS
    assert REFERENCE in timed
    (row,) = (each for each in choice.decisions if each["candidate"] == REFERENCE)
    assert row["outcome"] == "not folded; the chosen takes 2.00 of its time"
    other = ir.load(fixtures_dir / "qdq_net.onnx")
    other.graph.inputs.append(ir.Value(name="more", type=ir.TensorType(ir.DataType.FLOAT)))
    with pytest.raises(UsageError, match="the reference has 2 inputs, and the model 1"):
        choose(ratios, reference=other)


def test_a_gain_within_noise_decides_nothing(
    choose: Callable[..., tuple[FoldChoice, list[str]]],
) -> None:
    choice, _ = choose({AS_IT_CAME: 0.99, BY_COSTS: 1.0})
    assert choice.name == BY_COSTS


def test_no_model_leaves_slower_than_it_came(
    choose: Callable[..., tuple[FoldChoice, list[str]]],
) -> None:
    choice, _ = choose({AS_IT_CAME: 0.9, BY_COSTS: 1.0})
    assert (choice.name, choice.passes) == (AS_IT_CAME, ())


def test_rounding_is_relaxed_only_where_asked_and_within_the_budget(
    choose: Callable[..., tuple[FoldChoice, list[str]]],
) -> None:
    ratios = {AS_IT_CAME: 1.0, BY_COSTS: 0.9, _UNROUNDED: 0.5}
    assert choose(ratios)[0].name == BY_COSTS
    relaxed, timed = choose(ratios, relax=True, budget=Budget(sqnr_db=1.0, max_flip_rate=None))
    assert relaxed.name == _UNROUNDED
    assert _UNROUNDED in timed
    strict, timed = choose(ratios, relax=True, budget=Budget(sqnr_db=200.0, max_flip_rate=None))
    assert strict.name == BY_COSTS
    assert _UNROUNDED not in timed
    outcomes = {row["candidate"]: row["outcome"] for row in strict.decisions}
    assert outcomes[_UNROUNDED] == "misses the budget"


@pytest.mark.parametrize("relax", [False, True])
def test_an_lstm_may_round_its_state_where_rounding_is_relaxed(
    relax: bool, parse: Callable[..., ir.Model]
) -> None:
    codes = [str(index * 37 % 200 - 100) for index in range(48)]
    model = parse(
        f"""g (float[5,2,4] x) => (float[5,1,2,3] y)
        <int8[1,12,4] w = {{{", ".join(codes)}}}, int8[1,12,3] r = {{{", ".join(codes[:36])}}},
         float u = {{0.005}}>
        {{
          wf = DequantizeLinear (w, u)
          rf = DequantizeLinear (r, u)
          y = LSTM <hidden_size = 3> (x, wf, rf)
        }}"""
    )

    def clock(models: Mapping[str, ir.Model]) -> Mapping[str, Latency]:
        ratios = {name: 0.5 if name == _DYNAMIC else 1.0 for name in models}
        return {name: Latency(ratio, ratio) for name, ratio in ratios.items()}

    budget = Budget(sqnr_db=20.0, max_flip_rate=None)
    subject = FoldSubject(model, feeds_for(model, None), clock, relax=relax, budget=budget)
    choice = choose_fold(subject)
    assert (choice.name == _DYNAMIC) is relax
    assert ("quantize-lstm" in {each.name for each in choice.passes}) is relax
