from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxfold.passes.base import Contract, Pass
from onnxfold.passes.errors import BrokenContractError
from onnxfold.passes.registry import parse_passes
from onnxfold.passes.rewriter import Rewriter
from onnxfold.runtime.compiler import verified
from onnxfold.runtime.compiler.verified import (
    model_facts,
    run_tolerant,
    run_verified,
    weakest_contract,
)
from onnxfold.runtime.feeds import FeedSource, open_feeds
from onnxfold.runtime.progress import Silent
from onnxfold.runtime.specs import input_specs


@pytest.fixture
def model(parse: Callable[..., ir.Model]) -> ir.Model:
    return parse("g (float[2] x) => (float[2] y) { a = Identity(x)  y = Relu(a) }")


@pytest.fixture
def feeds(model: ir.Model) -> FeedSource:
    return open_feeds([{"x": np.array([1, -1], np.float32)}], input_specs(model))


@pytest.fixture
def broken(tmp_path: Path) -> str:
    """A pass that promises to keep every bit, and changes the sign."""
    (tmp_path / "bad.py").write_text("def negate(graph):\n    graph.nodes[-1].op = 'Neg'\n")
    return f"surgeon{{script={tmp_path / 'bad.py'}:negate}}"


def test_a_broken_contract_stops_a_verified_run(
    model: ir.Model, feeds: FeedSource, broken: str
) -> None:
    with pytest.raises(BrokenContractError, match="surgeon broke its contract") as caught:
        run_verified(model, parse_passes(f"remove-identity,{broken}"), feeds, Silent())
    assert caught.value.pass_name == "surgeon"


def test_a_tolerant_run_does_without_the_pass_and_says_so(
    model: ir.Model, feeds: FeedSource, broken: str
) -> None:
    passes = parse_passes(f"{broken},remove-identity")
    run, kept = run_tolerant(model, passes, feeds, Silent())
    assert [node.op_type for node in run.model.graph] == ["Relu"]
    assert kept == passes[1:]
    (remark,) = run.remarks
    assert remark.pass_name == "surgeon"
    assert "broke its contract" in remark.reason


def test_what_came_before_a_pass_left_out_is_not_run_again(
    model: ir.Model, feeds: FeedSource, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = parse_passes("remove-identity")[0]
    runs: list[int] = []
    apply = type(identity).apply

    def counted(self: Pass, graph: ir.Model, rewriter: Rewriter) -> None:
        runs.append(1)
        apply(self, graph, rewriter)

    monkeypatch.setattr(type(identity), "apply", counted)
    passes = parse_passes(f"remove-identity,{broken},remove-dead-code")
    run, kept = run_tolerant(model, passes, feeds, Silent())
    assert len(runs) == 1
    assert kept == (passes[0], passes[2])
    assert [row.rules for row in run.rows] == [{"drop-identity": 1}, {}]
    assert [node.op_type for node in run.model.graph] == ["Relu"]


def test_all_passes_of_the_name_are_left_out(
    model: ir.Model, feeds: FeedSource, tmp_path: Path
) -> None:
    (tmp_path / "bad.py").write_text(
        "def negate(graph):\n    last = graph.nodes[-1]\n"
        "    last.op = 'Neg' if last.op == 'Abs' else 'Abs'\n"
    )
    surgeon = f"surgeon{{script={tmp_path / 'bad.py'}:negate}}"
    passes = parse_passes(f"{surgeon},remove-identity,{surgeon}")
    positive = open_feeds([{"x": np.array([1, 2], np.float32)}], input_specs(model))
    run, kept = run_tolerant(model, passes, positive, Silent())
    assert kept == (passes[1],)
    assert [row.rules for row in run.rows] == [{"drop-identity": 1}]
    assert [node.op_type for node in run.model.graph] == ["Relu"]


def normalization(parse: Callable[..., ir.Model]) -> ir.Model:
    """A layer normalization in primitives."""
    return parse(
        """g (float[2,4] x) => (float[2,4] y) <float e = {1e-6}, int64[1] a = {-1}>
        { m = ReduceMean(x, a)  d = Sub(x, m)  s = Mul(d, d)  v = ReduceMean(s, a)
          w = Add(v, e)  r = Sqrt(w)  y = Div(d, r) }"""
    )


@pytest.mark.parametrize("stable", [True, False])
def test_a_pass_to_an_operator_the_runtime_gets_wrong_is_left_out(
    parse: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch, *, stable: bool
) -> None:
    monkeypatch.setattr(verified, "is_layer_norm_stable", lambda: stable)
    model = normalization(parse)
    values = np.arange(8, dtype=np.float32).reshape(2, 4)
    feeds = open_feeds([{"x": values}], input_specs(model))
    passes = parse_passes("fuse-layer-norm,infer-shapes,fuse-layer-norm,remove-dead-code")
    run, kept = run_tolerant(model, passes, feeds, Silent())
    fused = [node.op_type for node in run.model.graph] == ["LayerNormalization"]
    assert fused is stable
    assert kept == (passes if stable else passes[1::2])
    assert ["LayerNormalization wrongly" in each.reason for each in run.remarks] == (
        [] if stable else [True]
    )


def test_a_pass_that_would_do_nothing_is_not_missed(
    model: ir.Model, feeds: FeedSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "is_layer_norm_stable", lambda: False)
    run, kept = run_tolerant(model, parse_passes("fuse-layer-norm"), feeds, Silent())
    assert (run.remarks, kept) == ((), ())


def test_each_row_has_its_own_evidence(model: ir.Model, feeds: FeedSource) -> None:
    run = run_verified(model, parse_passes("fold-constants,remove-identity"), feeds, Silent())
    untouched, changed = run.rows
    assert (untouched.modified, untouched.evidence) == (False, {})
    assert changed.rules == {"drop-identity": 1}
    assert changed.evidence["pass"] == "remove-identity"
    assert changed.evidence["verdict"]["status"] == "passed"
    assert len(list(model.graph)) == 2


def test_the_weakest_contract_speaks_for_a_pipeline() -> None:
    assert weakest_contract(()) is Contract.EXACT
    assert (
        weakest_contract(parse_passes("remove-identity,fold-batch-norm")) is Contract.REASSOCIATED
    )
    assert weakest_contract(parse_passes("fold-qdq,fold-batch-norm")) is Contract.INTEGER


def test_facts_follow_the_bytes(model: ir.Model) -> None:
    assert model_facts(model) == model_facts(model.clone())
    assert model_facts(model).census["ops"] == {"Identity": 1, "Relu": 1}
