from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from onnxfold.passes.base import Contract
from onnxfold.passes.constants import Array
from onnxfold.passes.errors import ExecutionError, InconclusiveError
from onnxfold.runtime.feeds import open_feeds
from onnxfold.runtime.session import DEPLOYMENT, REFERENCE, Session
from onnxfold.runtime.specs import Feed, input_specs
from onnxfold.runtime.verify import region_gate
from onnxfold.runtime.verify.compare import compare_models
from onnxfold.runtime.verify.complete import complete_feed
from onnxfold.runtime.verify.drift import DriftProbe
from onnxfold.runtime.verify.metrics import OutputMetrics
from onnxfold.runtime.verify.regions import RegionSurvey
from onnxfold.runtime.verify.softmax import LogitsSession, softmax_inputs, softmax_outputs

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'
RNG = np.random.default_rng(7)
WEIGHTS: Array = RNG.normal(size=(16, 10)).astype(np.float32)
FEEDS: list[Feed] = [{"x": RNG.normal(size=(2, 16)).astype(np.float32)} for _ in range(4)]


def parse(text: str, **weights: Array) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(HEADER + text)
    for name, array in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


def linear(body: str = "y = MatMul(x, w)", w: Array = WEIGHTS) -> onnx.ModelProto:
    return parse(f"g (float[N,16] x) => (float[N,10] y) {{ {body} }}", w=w)


def test_identical_models_pass_every_contract() -> None:
    for contract in Contract:
        feeds = FEEDS * 200 if contract is Contract.APPROXIMATE else FEEDS
        comparison = compare_models(linear(), linear(), feeds, contract)
        assert comparison.verdict.passed, comparison.verdict
        assert comparison.samples == len(feeds)
        assert [each.name for each in comparison.outputs] == ["y"]


def test_evidence_is_plain_json() -> None:
    feeds = open_feeds(None, input_specs(linear()), limit=2)
    comparison = compare_models(linear(), linear(), feeds, Contract.EXACT)
    report = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert report["verdict"] == {"status": "passed", "reasons": []}
    assert report["outputs"][0]["sqnr_db"] == "inf"
    assert report["feeds"]["generated"] is True
    assert report["configs"][0]["optimize"] is False
    assert report["drift"] == []


def test_changed_weight_fails_with_the_place() -> None:
    wrong: Array = np.array(WEIGHTS)
    wrong[3, 7] += np.float32(0.01)
    comparison = compare_models(linear(), linear(w=wrong), FEEDS, Contract.REASSOCIATED)
    assert comparison.verdict.status == "failed"
    assert "output 'y': max |difference|" in comparison.verdict.reasons[0]
    assert ", 7]: reference" in comparison.verdict.reasons[0]
    assert any("in configuration 'deployment'" in each for each in comparison.verdict.reasons)


def test_reordered_sum_is_reassociated_and_not_exact() -> None:
    tripled = parse(
        "g (float[N,16] x) => (float[N,10] y) { z = MatMul(x, h) y = Mul(z, third) }",
        h=WEIGHTS * np.float32(3),
        third=np.array(1 / 3, np.float32),
    )
    assert compare_models(linear(), tripled, FEEDS, Contract.REASSOCIATED).verdict.passed
    assert not compare_models(linear(), tripled, FEEDS, Contract.EXACT).verdict.passed


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        ("(float[N,16] x) => (float[N,10] z) { z = MatMul(x, w) }", "output 'y' is missing"),
        (
            "(float[N,16] x) => (float[N,10] y, float[N,10] r) { y = MatMul(x, w) r = Relu(y) }",
            "output 'r' of the candidate is not in the reference",
        ),
        (
            "(float[2,16] x) => (float[2,10] y) { y = MatMul(x, w) }",
            r"input 'x': the candidate declares float32[2,16], wanted float32[N,16]",
        ),
        (
            "(float[N,16] x, float[N] u) => (float[N,10] y) { y = MatMul(x, w) }",
            "input 'u' of the candidate is not in the reference",
        ),
        (
            "(float[N,16] x) => (double[N,10] y) { z = MatMul(x, w) y = Cast<to=11>(z) }",
            "declares float64[N,10], wanted float32[N,10]",
        ),
    ],
)
def test_changed_interface_fails_before_any_number(candidate: str, reason: str) -> None:
    comparison = compare_models(linear(), parse(f"g {candidate}", w=WEIGHTS), FEEDS, Contract.EXACT)
    assert comparison.verdict.status == "failed"
    assert reason in comparison.verdict.reasons[0]
    assert comparison.samples == 0


def test_hidden_shape_change_is_seen_when_running() -> None:
    old = parse("g (float[N,16] x) => (float[A,B] y) { y = MatMul(x, w) }", w=WEIGHTS)
    new = parse(
        "g (float[N,16] x) => (float[A,B] y) { z = MatMul(x, w) y = Transpose(z) }", w=WEIGHTS
    )
    comparison = compare_models(old, new, FEEDS, Contract.EXACT)
    assert "sample 0: output 'y': got float32[10, 2], wanted float32[2, 10]" in (
        comparison.verdict.reasons
    )


def test_no_feeds_decide_nothing() -> None:
    with pytest.raises(InconclusiveError, match="there is no sample"):
        compare_models(linear(), linear(), [], Contract.EXACT)


def test_candidate_that_does_not_load_is_named() -> None:
    with pytest.raises(ExecutionError, match=r"^candidate: onnxruntime refuses"):
        compare_models(linear(), linear("y = Nothing(x, w)"), FEEDS, Contract.EXACT)


def test_added_outputs_and_inputs() -> None:
    new = parse(
        """g (float[N,16] x, int64[N] labels) => (float[N,10] y, float[N] loss)
        { y = MatMul(x, w) picked = Cast<to=1>(labels) loss = Neg(picked) }""",
        w=WEIGHTS,
    )
    comparison = compare_models(linear(), new, FEEDS, Contract.ADDITIVE)
    assert comparison.verdict.passed
    assert [each.name for each in comparison.outputs] == ["y"]
    assert not compare_models(linear(), new, FEEDS, Contract.EXACT).verdict.passed


def test_made_up_inputs_suit_the_feed() -> None:
    inputs = input_specs(
        parse("g (float[N,16] x, int64[N] labels) => (float[N,16] y) { y = Identity(x) }")
    )
    first, second = (complete_feed(FEEDS[0], {}, inputs) for _ in range(2))
    assert first["labels"].shape == (2,)
    np.testing.assert_array_equal(first["labels"], second["labels"])
    given = complete_feed(FEEDS[0], {"labels": np.array([8, 9])}, inputs)
    assert given["labels"].tolist() == [8, 9]


SATURATED = 40 * WEIGHTS


def classifier(weights: Array, end: str = "y = Softmax(z)") -> onnx.ModelProto:
    return parse(
        f"g (float[N,16] x) => (float[N,10] y) {{ z = MatMul(x, w) {end} }}",
        w=weights,
        last=np.array([-1]),
    )


def test_saturated_softmax_hides_nothing() -> None:
    wrong: Array = SATURATED * np.float32(1.02)
    comparison = compare_models(
        classifier(SATURATED), classifier(wrong), FEEDS[:1], Contract.REASSOCIATED
    )
    plain = {each.name: each for each in comparison.outputs}
    assert plain["y (before softmax)"].relative_to_max == pytest.approx(0.02, rel=0.01)
    assert plain["y"].relative_to_max < plain["y (before softmax)"].relative_to_max
    assert any("'y (before softmax)'" in reason for reason in comparison.verdict.reasons)


DECOMPOSED = (
    "m = ReduceMax<keepdims=1>(z, last) s = Sub(z, m) e = Exp(s) "
    "t = ReduceSum<keepdims=1>(e, last) y = Div(e, t)"
)


@pytest.mark.parametrize(
    ("end", "before"),
    [
        ("y = Softmax(z)", "z"),
        (DECOMPOSED, "z"),
        ("e = Exp(z) t = ReduceSum<keepdims=1>(e, last) y = Div(e, t)", "z"),
        ("e = Exp(z) f = Exp(e) t = ReduceSum<keepdims=1>(f, last) y = Div(e, t)", None),
        ("y = Relu(z)", None),
    ],
)
def test_softmaxes_are_found(end: str, before: str | None) -> None:
    model = ir.from_proto(classifier(WEIGHTS, end))
    assert softmax_inputs(model) == ({} if before is None else {"y": before})
    assert softmax_outputs(model) == (frozenset() if before is None else {"y"})


def test_both_forms_of_softmax_compare_before_it() -> None:
    comparison = compare_models(
        classifier(WEIGHTS), classifier(WEIGHTS, DECOMPOSED), FEEDS, Contract.REASSOCIATED
    )
    assert comparison.verdict.passed
    assert [each.name for each in comparison.outputs] == ["y", "y (before softmax)"]


def test_exposing_leaves_the_model_alone() -> None:
    model = ir.from_proto(classifier(WEIGHTS))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    session = LogitsSession.open(model)
    outputs, logits = session.run(FEEDS[0])
    assert list(outputs) == ["y"]
    np.testing.assert_allclose(logits["y"], FEEDS[0]["x"] @ WEIGHTS, rtol=1e-4, atol=1e-5)
    assert [spec.name for spec in session.outputs] == ["y"]
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def quantized(factor: float = 1.0) -> onnx.ModelProto:
    """Quantized activations around float weights, which ONNX Runtime goes and quantizes itself."""
    rng = np.random.default_rng(3)
    return parse(
        """g (float[N,16] x) => (float[N,16] y) {
            q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  m = Gemm(d, w, b)
            p = QuantizeLinear(m, t, z)  y = DequantizeLinear(p, t, z) }""",
        w=rng.normal(0, factor, (16, 16)).astype(np.float32),
        b=rng.normal(size=16).astype(np.float32),
        s=np.array(0.03, np.float32),
        t=np.array(0.1, np.float32),
        z=np.array(128, np.uint8),
    )


def test_deployment_is_excused_by_the_drift_of_the_reference() -> None:
    comparison = compare_models(quantized(), quantized(), FEEDS, Contract.EXACT)
    (off,), (on,), (drift,) = comparison.outputs, comparison.deployment, comparison.drift
    assert comparison.verdict.passed
    assert off.different == 0
    assert on.different == drift.different > 0
    assert on.sqnr_db == drift.sqnr_db < 45


def test_drift_does_not_excuse_a_wrong_weight() -> None:
    comparison = compare_models(quantized(), quantized(1.1), FEEDS, Contract.INTEGER)
    assert comparison.verdict.status == "failed"
    assert comparison.drift
    assert any("SQNR" in reason for reason in comparison.verdict.reasons)


def test_drift_of_a_model_that_onnxruntime_breaks_is_that_of_its_scales() -> None:
    """The optimizer puts Q/DQ pairs of int32 around the Transpose, and refuses them itself."""
    model = parse(
        "g (float[2,16] x, int32[2,16] q) => (float[16,2] y, float[2,16] r)"
        "<float s = {0.1}, int32 z = {0}, float t = {0.02}, uint8 u = {128}>{"
        " f = DequantizeLinear(q, s, z) m = Transpose(f) y = Sigmoid(m)"
        " c = QuantizeLinear(x, t, u) r = DequantizeLinear(c, t, u) }"
    )
    with pytest.raises(ExecutionError):
        Session(model, DEPLOYMENT)
    feeds = [{**feed, "q": np.arange(32, dtype=np.int32).reshape(2, 16)} for feed in FEEDS]
    drift = DriftProbe(model, feeds).measure()
    assert {*drift} == {"y", "r"}
    assert drift["r"].different > 0


HALVES: list[Feed] = [
    {"x": np.random.default_rng(n).integers(0, 5, (4, 16)).astype(np.float32)} for n in range(3)
]
"""Half of their products lie between two codes."""


def no_drift(_: DriftProbe) -> dict[str, OutputMetrics]:
    return {}


def rounding(how: str) -> onnx.ModelProto:
    """A network that makes ten of each code's difference; ``how`` it rounds to its codes ``q``."""
    return parse(
        "g (float[N,16] x) => (float[N,16] y)"
        "<float h = {0.5}, float s = {1.0}, uint8 z = {0}, float m = {1.0}, float k = {10.0},"
        f" float u = {{0.5}}, float o = {{1.0}}> {{ p = Mul(x, h) {how}"
        " d = DequantizeLinear(q, s, z) e = Sub(d, m) y = Mul(e, k) }"
    )


EVEN = "q = QuantizeLinear(p, s, z)"
UP = "a = Add(p, u) b = Floor(a) q = Cast<to = 2>(b)"
"""Ties go up instead of to the even code."""


def test_exact_operators_excuse_what_a_network_makes_of_ties(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(DriftProbe, "measure", no_drift)
    comparison = compare_models(rounding(EVEN), rounding(UP), HALVES, Contract.INTEGER)
    assert comparison.outputs[0].sqnr_db < 35
    assert comparison.verdict.passed
    assert comparison.regions is not None
    assert comparison.regions.ties > 0
    assert comparison.to_json()["regions"]["mismatches"] == 0


def test_ties_excuse_no_operator_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DriftProbe, "measure", no_drift)
    wrong = "a = Add(p, o) b = Floor(a) q = Cast<to = 2>(b)"
    comparison = compare_models(rounding(EVEN), rounding(wrong), HALVES, Contract.INTEGER)
    assert comparison.verdict.status == "failed"
    assert comparison.verdict.reasons[0].startswith("tensor 'q'")


def test_operators_that_there_is_no_time_for_leave_the_question_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(DriftProbe, "measure", no_drift)
    whole: Callable[..., RegionSurvey] = region_gate.check_regions

    def in_no_time(*models: Any, **options: Any) -> RegionSurvey:
        survey = whole(*models, **options)
        return replace(survey, regions=survey.regions + 1)

    monkeypatch.setattr(region_gate, "check_regions", in_no_time)
    verdict = compare_models(rounding(EVEN), rounding(UP), HALVES, Contract.INTEGER).verdict
    assert verdict.status == "inconclusive"
    assert "1 of 2 operators that there was time to compare" in verdict.reasons[0]


def test_deployment_beyond_what_ties_do_is_no_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DriftProbe, "measure", no_drift)
    off = replace(REFERENCE, name="off")
    run: Callable[..., Any] = Session.run

    def noisy(session: Session, feed: Feed) -> Any:
        outputs = run(session, feed)
        return (
            outputs
            if session.config == off
            else {name: value + 40 for name, value in outputs.items()}
        )

    monkeypatch.setattr(Session, "run", noisy)
    models = rounding(EVEN), rounding(UP)
    verdict = compare_models(*models, HALVES, Contract.INTEGER, configs=(off, DEPLOYMENT)).verdict
    assert verdict.status == "failed"


def reshaped(shape: str, *, declared: str = "1,n") -> onnx.ModelProto:
    """A model whose output has other axes than it declares."""
    return parse(
        f"g (float[n,4] x) => (float[{declared}] y)"
        "<int64[3] known = {-1, 1, 4}, int64[2] flat = {-1, 4}, int64[1] one = {1},"
        " int64[1] four = {4}>"
        f"{{ size = Shape<start = 0, end = 1>(x) read = Concat<axis = 0>(size, one, four)"
        f" y = Reshape(x, {shape}) }}"
    )


def test_what_onnxruntime_infers_against_a_declaration_is_no_difference() -> None:
    feeds: list[Feed] = [{"x": np.ones((n, 4), np.float32)} for n in (1, 3)]
    assert Session(reshaped("known")).outputs[0].shape != (1, "n")
    assert LogitsSession.open(reshaped("known")).outputs[0].shape == (1, "n")
    passed = compare_models(reshaped("read"), reshaped("known"), feeds, Contract.EXACT)
    assert passed.verdict.passed, passed.verdict
    other = compare_models(reshaped("read"), reshaped("flat"), feeds, Contract.EXACT)
    assert other.verdict.status == "failed"
    open_ended = reshaped("known", declared="n,1,4")
    declared = compare_models(reshaped("read"), open_ended, feeds, Contract.EXACT)
    assert "wanted float32[1,n]" in declared.verdict.reasons[0]
