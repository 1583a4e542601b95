from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import Contract
from onnxfold.passes.constants import Array
from onnxfold.runtime.session import Session
from onnxfold.runtime.verify import oracle
from onnxfold.runtime.verify.compare import compare_models

Parse = Callable[..., ir.Model]

ONE_PASS = """squares = Mul(x, x)  second = ReduceMean <axes = [1]> (squares)
    mean = ReduceMean <axes = [1]> (x)  first = Mul(mean, mean)  y = Sub(second, first)"""
TWO_PASS = """mean = ReduceMean <axes = [1]> (x)  d = Sub(x, mean)  squares = Mul(d, d)
    y = ReduceMean <axes = [1]> (squares)"""
WRONG = """mean = ReduceMean <axes = [1]> (x)  d = Sub(x, mean)  squares = Mul(d, d)
    biased = ReduceMean <axes = [1]> (squares)  y = Mul(biased, factor)"""


def variance(parse: Parse, body: str) -> ir.Model:
    text = f"g (float[2,64] x) => (float[2,1] y) <float factor = {{1.02}}> {{ {body} }}"
    return parse(text, opset=17)


@pytest.fixture
def feeds() -> list[dict[str, Array]]:
    """Numbers whose mean is far above their spread: the one-pass variance cancels."""
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(300, 1, (2, 64)).astype(np.float32)} for _ in range(4)]


def test_a_rewrite_nearer_to_the_truth_is_no_breach(
    parse: Parse, feeds: list[dict[str, Array]]
) -> None:
    old, new = variance(parse, ONE_PASS), variance(parse, TWO_PASS)
    errors = [np.max(np.abs(Session(old).run(f)["y"] - Session(new).run(f)["y"])) for f in feeds]
    assert max(errors) > 1e-3
    assert compare_models(old, new, feeds, Contract.REASSOCIATED).verdict.passed


def test_one_further_from_the_truth_is(parse: Parse, feeds: list[dict[str, Array]]) -> None:
    good, bad = variance(parse, TWO_PASS), variance(parse, ONE_PASS)
    verdict = compare_models(good, bad, feeds, Contract.REASSOCIATED).verdict
    assert verdict.status == "failed"
    assert "index [" in verdict.reasons[0]
    wrong = variance(parse, WRONG)
    assert not compare_models(good, wrong, feeds, Contract.REASSOCIATED).verdict.passed


def test_the_oracle_is_not_asked_where_every_bit_counts(
    parse: Parse, feeds: list[dict[str, Array]]
) -> None:
    old, new = variance(parse, ONE_PASS), variance(parse, TWO_PASS)
    assert not compare_models(old, new, feeds, Contract.EXACT).verdict.passed


def test_float64_follows_constants_casts_and_pools(parse: Parse) -> None:
    model = parse(
        """g (float[1,2,3] x) => (float[1,2,1] y)
        { half = Constant <value = float {0.1}> ()  whole = Cast <to = 7> (x)
          back = Cast <to = 1> (whole)  z = Mul(back, half)  y = GlobalMaxPool(z) }""",
        opset=17,
    )
    feed = {"x": np.array([[[1, 5, 3], [2, 2, 7]]], np.float32)}
    result = oracle.Float64Oracle(model, {}).run(feed)["y"]
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, np.array([[[0.5], [0.7]]]), rtol=1e-7)
    assert [value.dtype for value in model.graph.outputs] == [ir.DataType.FLOAT]


@pytest.mark.parametrize(
    "body",
    ["y = com.microsoft.Gelu(x)", "r = RandomNormalLike(x)  y = Add(x, r)"],
)
def test_what_it_cannot_evaluate_has_no_oracle(body: str, parse: Parse) -> None:
    header = '<ir_version: 10, opset_import: ["" : 17, "com.microsoft" : 1]>'
    model = parse(f"{header} g (float[2] x) => (float[2] y) {{ {body} }}")
    samples: list[oracle.OracleSample] = [({"x": np.zeros(2, np.float32)}, ({}, {}), [({}, {})])]
    assert oracle.nearer_to_truth(model, {}, samples) is None


def test_large_models_are_not_evaluated(parse: Parse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "MOST_MACS", 10)
    model = parse("g (float[4,4] x) => (float[4,4] y) { y = MatMul(x, x) }")
    with pytest.raises(oracle.NoOracleError):
        oracle.Float64Oracle(model, {})


def test_an_operator_newer_than_the_evaluator_knows_has_no_oracle(parse: Parse) -> None:
    """onnx's reference has no DequantizeLinear of opset 18, which tf2onnx writes."""
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18]>
        agraph (uint8[4] q) => (float[4] y) <float s = {0.5}, uint8 z = {3}>
        { y = DequantizeLinear (q, s, z) }"""
    )
    with pytest.raises(oracle.NoOracleError):
        oracle.Float64Oracle(model, {})


def test_loops_stack_what_their_steps_give_and_need_no_condition(parse: Parse) -> None:
    model = parse(
        """g (float[2] x) => (float[2] y, float[3,2] each, float[3] sums)
        <int64 trips = {3}> {
            y, each, sums = Loop(trips, , x) <body = b (int64 i, bool c, float[2] s)
                => (bool go_on, float[2] moved, float[2] kept, float total) {
                    go_on = Identity(c)  moved = Add(s, s)  kept = Identity(moved)
                    total = ReduceSum<keepdims = 0>(moved)
                }>
        }"""
    )
    feed = {"x": np.array([1, 2], np.float32)}
    found, wanted = oracle.Float64Oracle(model, {}).run(feed), Session(model).run(feed)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
