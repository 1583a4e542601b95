"""Outputs that are fed back: which they are, and what their errors count for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.constants import Array
from onnxfold.runtime.compiler.detections import detection_outputs, scores_kept
from onnxfold.runtime.compiler.quality import QualityJudge
from onnxfold.runtime.compiler.states import follow, states_of
from onnxfold.runtime.feeds import open_feeds
from onnxfold.runtime.specs import Feed, input_specs
from onnxfold.runtime.verify.budget import Budget

Parse = Callable[..., ir.Model]
PLAIN = (
    "g (float[N,2] x, {before}) => (float[N,2] y, {after}) {{ y = Neg(x)  {name} = Neg({old}) }}"
)


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ("state", "stateN", True),
        ("h0", "hn", True),
        ("h", "h_out", True),
        ("hidden_in", "hidden_out", True),
        ("prev_state", "new_state", True),
        ("past_key_values_0_key", "present_0_key", True),
        ("cache_in", "cache_next", True),
        ("state", "y_state", False),
        ("image_in", "image_out", False),
        ("h_in", "c_out", False),
        ("x_in", "stateN", False),
    ],
)
def test_what_names_say(parse: Parse, before: str, after: str, found: bool) -> None:
    text = PLAIN.format(
        before=f"float[N,3] {before}", after=f"float[N,3] {after}", name=after, old=before
    )
    assert states_of(parse(text)) == ({before: after} if found else {})


@pytest.mark.parametrize(
    ("before", "after"),
    [("float[N,3]", "float[N,4]"), ("int64[N,3]", "int64[N,3]"), ("float[N,3]", "float[N,1,3]")],
)
def test_a_state_fits_where_it_is_fed(parse: Parse, before: str, after: str) -> None:
    text = f"g (float[2] x, {before} state) => (float[2] y, {after} stateN)"
    model = parse(f"{text} {{ y = Neg(x)  stateN = Neg(state) }}")
    assert states_of(model) == {}


def test_without_another_input_and_another_output_nothing_is_a_state(parse: Parse) -> None:
    alone = "g (float[3] x, float[3] state) => (float[3] stateN) { stateN = Add(x, state) }"
    assert states_of(parse(alone)) == {}


def test_an_lstm_tells_its_states_whatever_they_are_called(parse: Parse) -> None:
    text = """g (float[1,1,2] x, float[1,1,3] a, float[1,1,3] b, float[1,12,2] w, float[1,12,3] r)
        => (float[1,1,1,3] y, float[1,1,3] p, float[1,1,3] q)
        { y, last, q = LSTM <hidden_size = 3> (x, w, r, , , a, b)  p = Identity(last) }"""
    model = parse(text)
    assert states_of(model) == {"a": "p", "b": "q"}


def test_a_run_starts_anew_where_the_data_does() -> None:
    def run(feed: Feed) -> Mapping[str, Any]:
        return {"stateN": feed["state"] + feed["x"]}

    def final(states: list[float]) -> list[float]:
        feeds: list[Feed] = [
            {"x": np.ones(1, np.float32), "state": np.full(1, each, np.float32)} for each in states
        ]
        return [float(out["stateN"][0]) for out in follow(run, feeds, {"state": "stateN"})]

    assert final([5.0, 7.0, 0.0, 9.0]) == [6.0, 7.0, 1.0, 2.0]
    assert final([0.0, 0.0, 0.0]) == [1.0, 2.0, 3.0]


LEAKY = """g (float[1,4] x, float[1,4] state) => (float[1,{width}] score, float[1,4] stateN)
    <float keep = {{{keep}}}, float gain = {{{gain}}}, float shift = {{{shift}}},
     int64[1] last = {{1}}>
    {{ kept = Mul(state, keep)  new = Add(kept, x)  stateN = Add(new, shift)
       sum = {summed}  scaled = Mul(sum, gain)  score = Sigmoid(scaled) }}"""
SUM = "ReduceSum(new, last)"


def leaky(
    parse: Parse, keep: float = 0.9, gain: float = 1.0, shift: float = 0.0, summed: str = SUM
) -> ir.Model:
    width = 1 if summed == SUM else 4
    return parse(
        LEAKY.format(keep=keep, gain=gain, shift=shift, summed=summed, width=width), opset=17
    )


def steps(count: int) -> list[dict[str, Array]]:
    rng = np.random.default_rng(0)
    zero = np.zeros((1, 4), np.float32)
    return [{"x": rng.normal(size=(1, 4)).astype(np.float32), "state": zero} for _ in range(count)]


def judge(original: ir.Model, count: int, budget: Budget | None = None) -> QualityJudge:
    return QualityJudge(
        original, open_feeds(steps(count), input_specs(original)), budget or Budget()
    )


def test_an_error_that_only_grows_in_a_run_is_seen(parse: Parse) -> None:
    """With the states of the data, all zero, a decay of 0.2 computes the same as one of 0.9."""
    original = leaky(parse, summed="Identity(new)")
    other = leaky(parse, keep=0.2, summed="Identity(new)")
    found = judge(original, 64)(other)
    assert not found.passed
    assert "states drift to" in found.text
    assert found.score < 10


def test_an_error_in_a_state_counts_by_what_it_does_to_other_outputs(parse: Parse) -> None:
    original = leaky(parse, summed="Identity(x)")
    other = leaky(parse, shift=0.5, summed="Identity(x)")
    assert judge(original, 64)(other).passed
    assert judge(original, 64).states == {"stateN"}
    # So few steps show little: there the state is judged as any output.
    assert not judge(original, 8)(other).passed


@pytest.mark.parametrize(
    ("gain", "keep", "count", "budget", "passed"),
    [
        (1.5, 0.9, 64, Budget(), True),
        (1.5, 0.9, 20, Budget(), False),
        (1.5, 0.9, 64, Budget.from_text("sqnr=30"), False),
        (1.0, 0.5, 64, Budget(), False),
    ],
)
def test_detections_are_judged_by_their_ranking(
    parse: Parse, gain: float, keep: float, count: int, budget: Budget, passed: bool
) -> None:
    found = judge(leaky(parse), count, budget)(leaky(parse, gain=gain, keep=keep))
    assert found.score < 30
    assert found.passed is passed


def test_the_users_metric_sees_the_run(parse: Parse) -> None:
    original = leaky(parse)
    seen: list[float] = []

    def metric(pairs: Any) -> float:
        seen.append(sum(float(outputs["score"][0, 0]) for outputs, _ in pairs))
        return seen[-1]

    feeds = open_feeds(steps(20), input_specs(original))
    QualityJudge(original, feeds, Budget(), metric)(leaky(parse, keep=0.0))
    assert seen[0] != pytest.approx(seen[1], abs=0.1)


@pytest.mark.parametrize(
    ("shape", "body", "found"),
    [
        ("N,1", "y = Sigmoid(x)", ("y",)),
        ("N", "s = Sigmoid(x)  y = ReduceMean <axes = [1], keepdims = 0> (s)", ("y",)),
        ("N,3", "y = Sigmoid(x)", ()),
        ("N,1", "y = Neg(x)", ()),
    ],
)
def test_what_a_detection_is(parse: Parse, shape: str, body: str, found: tuple[str, ...]) -> None:
    model = parse(f"g (float[N,1] x) => (float[{shape}] y) {{ {body} }}", opset=13)
    assert detection_outputs(model, ()) == found


def test_scores_that_are_not_finite_rank_nothing() -> None:
    one: Array = np.arange(4.0)
    assert scores_kept([one], [2.0 * one]) == pytest.approx(1.0)
    assert scores_kept([one], [np.where(one == 2, np.nan, one)]) == 0.0
