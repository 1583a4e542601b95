from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import onnxfold
from onnxfold.passes.errors import NotEquivalentError, UsageError
from onnxfold.passes.pair_saturation import saturating_layers
from onnxfold.passes.serialization import model_bytes
from onnxfold.passes.walk import all_nodes
from onnxfold.runtime.specs import input_specs

LOOSE = "sqnr=15,cosine=0.97"
"""What a small random network keeps after quantization, and few samples can prove."""


def feeds_for(path: Path, count: int = 24, seed: int = 1) -> dict[str, Any]:
    """Random arrays for every input, ``count`` samples each."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, Any] = {}
    for spec in input_specs(path):
        shape = [dim if isinstance(dim, int) else 1 for dim in (spec.shape or ())]
        shape[0] = count
        arrays[spec.name] = rng.normal(size=shape).astype(np.float32)
    return arrays


def op_types(model: ir.Model) -> set[str]:
    return {node.op_type for node in all_nodes(model)}


@pytest.fixture
def conv_net(fixtures_dir: Path) -> Path:
    return fixtures_dir / "conv_net.onnx"


@pytest.fixture
def conv_data(conv_net: Path) -> Mapping[str, Any]:
    return feeds_for(conv_net)


def test_compile_gives_an_integer_model_with_evidence(
    conv_net: Path, conv_data: Mapping[str, Any]
) -> None:
    outcome = onnxfold.compile(conv_net, data=conv_data, keep_slower=True, budget=LOOSE)
    assert "QLinearConv" in op_types(outcome.model)
    report = outcome.report.to_json()
    assert report["verdict"]["passed"]
    assert report["result"]["census"]["integer_share"] > 0.8, "all but the first layer"
    assert report["equivalence"]["samples"] == 12
    gates = {row["pass"].split("{")[0]: row["evidence"] for row in report["passes"]}
    assert gates["fold-qdq"]["contract"] == "integer"
    assert gates["fold-qdq"]["verdict"]["status"] == "passed"
    json.dumps(report)


def test_a_plan_replays_to_the_same_bytes(
    conv_net: Path, conv_data: Mapping[str, Any], tmp_path: Path
) -> None:
    first = onnxfold.compile(conv_net, data=conv_data, keep_slower=True, budget=LOOSE)
    first.save_report(tmp_path)
    again = onnxfold.compile(conv_net, data=conv_data, plan=tmp_path / "plan.json", budget=LOOSE)
    assert "QLinearConv" in op_types(again.model)
    assert model_bytes(again.model) == model_bytes(first.model)
    assert again.report.latency == {}


def test_a_replay_gives_the_reasons_that_were_measured(
    conv_net: Path, conv_data: Mapping[str, Any], tmp_path: Path
) -> None:
    first = onnxfold.compile(conv_net, data=conv_data, budget="sqnr=300")
    first.save_report(tmp_path)
    again = onnxfold.compile(conv_net, plan=tmp_path / "plan.json", budget="sqnr=300")
    reasons = [[each.reason for each in run.report.islands] for run in (first, again)]
    assert any("within the budget" in reason for reason in reasons[0])
    assert reasons[0] == reasons[1]


def test_the_qdq_target_quantizes_whatever_onnxruntime_makes_of_it(
    conv_net: Path, conv_data: Mapping[str, Any]
) -> None:
    outcome = onnxfold.compile(conv_net, data=conv_data, target="qdq", budget=LOOSE)
    ops = op_types(outcome.model)
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= ops
    assert not any(op.startswith("QLinear") for op in ops)


@pytest.mark.parametrize(("count", "held_out"), [(1, False), (2, True)])
def test_the_report_says_whether_the_judging_samples_were_held_out(
    count: int, held_out: bool, conv_net: Path
) -> None:
    outcome = onnxfold.compile(conv_net, data=feeds_for(conv_net, count), budget=LOOSE)
    assert outcome.report.data["held_out"] is held_out


def test_what_misses_the_budget_stays_in_float(
    conv_net: Path, conv_data: Mapping[str, Any]
) -> None:
    outcome = onnxfold.compile(conv_net, data=conv_data, budget="sqnr=300", keep_slower=True)
    assert "QLinearConv" not in op_types(outcome.model)
    assert any(row["outcome"] == "misses the budget" for row in outcome.report.decisions)


def test_the_model_may_come_in_any_form_and_is_not_touched(conv_net: Path) -> None:
    proto = onnx.load(conv_net)
    before = proto.SerializeToString(deterministic=True)
    model = ir.from_proto(onnx.load(conv_net))
    loaded = model_bytes(model)
    results = [onnxfold.optimize(each).model for each in (conv_net, str(conv_net), proto, model)]
    assert len({model_bytes(each) for each in results}) == 1
    assert proto.SerializeToString(deterministic=True) == before
    assert model_bytes(model) == loaded


def test_optimize_does_without_a_pass_that_only_later_samples_show_to_be_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "agraph (float[N] x) => (float[N] y) { a = Identity(x)  y = Relu(a) }"
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    (tmp_path / "p.py").write_text("def loose(graph):\n    graph.nodes[-1].op = 'Abs'\n")
    passes = f"fold-constants,surgeon{{script={tmp_path / 'p.py'}:loose}},remove-identity"
    monkeypatch.setattr("onnxfold.api.OPTIMIZE", passes)
    data = [{"x": np.array([sign], np.float32)} for sign in (1, 1, 1, 1, 1, -1)]
    outcome = onnxfold.optimize(model, data=data)
    assert [node.op_type for node in outcome.model.graph] == ["Relu"]
    assert [remark.pass_name for remark in outcome.report.remarks] == ["surgeon"]


@pytest.mark.parametrize("target", ["ort", "standard"])
def test_fold_with_a_reduced_range_saturates_on_no_machine(
    target: Literal["ort", "standard"], fixtures_dir: Path
) -> None:
    plain = onnxfold.fold(fixtures_dir / "qdq_net.onnx", target=target)
    reduced = onnxfold.fold(fixtures_dir / "qdq_net.onnx", target=target, reduce_range=True)
    assert saturating_layers(plain.model)
    assert not saturating_layers(reduced.model)


def test_reduced_range_does_not_go_with_measuring(fixtures_dir: Path) -> None:
    with pytest.raises(UsageError, match="reduced weights"):
        onnxfold.fold(fixtures_dir / "qdq_net.onnx", measure=True, reduce_range=True)


def test_fold_turns_fake_quantization_into_integers(fixtures_dir: Path) -> None:
    path = fixtures_dir / "qdq_net.onnx"
    folded = onnxfold.fold(path)
    assert "QLinearConv" in op_types(folded.model)
    assert folded.report.passed
    assert onnxfold.verify(path, folded.model, contract=onnxfold.Contract.INTEGER).verdict.passed


def test_explain_gives_each_island_a_reason(fixtures_dir: Path) -> None:
    explanation = onnxfold.explain(fixtures_dir / "qdq_net.onnx")
    assert explanation.kind.value == "fake-quantized"
    assert explanation.folded is not None
    assert (explanation.census.integer_share, explanation.folded.integer_share) == (0.0, 1.0)
    assert explanation.costs
    assert all(island.reason for island in explanation.islands)
    shares = [island.time_share or 0.0 for island in explanation.islands]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) < 1


def test_a_fold_reports_each_island_with_its_share_of_the_time(fixtures_dir: Path) -> None:
    report = onnxfold.fold(fixtures_dir / "qdq_net.onnx").report
    assert report.islands
    assert all(island.reason and island.time_share is not None for island in report.islands)
    assert not onnxfold.optimize(fixtures_dir / "mobile_net.onnx").report.islands


def test_verify_tells_a_wrong_model(conv_net: Path) -> None:
    wrong = onnx.load(conv_net)
    for initializer in wrong.graph.initializer:
        if initializer.data_type == onnx.TensorProto.FLOAT:
            array = onnx.numpy_helper.to_array(initializer)
            initializer.CopyFrom(onnx.numpy_helper.from_array(array * 1.01, initializer.name))
            break
    comparison = onnxfold.verify(conv_net, wrong)
    assert not comparison.verdict.passed


def test_a_budget_goes_with_no_other_contract(conv_net: Path) -> None:
    assert onnxfold.verify(conv_net, conv_net, contract="approximate", budget=0.5).verdict.passed
    with pytest.raises(UsageError, match="for contract approximate: exact leaves nothing to lose"):
        onnxfold.verify(conv_net, conv_net, contract="exact", budget=0.1)


def test_a_pass_that_breaks_its_promise_stops_everything(conv_net: Path, tmp_path: Path) -> None:
    script = tmp_path / "bad.py"
    script.write_text("def scale(graph):\n    graph.nodes[0].inputs[1].values *= 1.001\n")
    with pytest.raises(NotEquivalentError, match="surgeon broke its contract"):
        onnxfold.run_passes(conv_net, f"surgeon{{script={script}:scale}}")


def test_compile_refuses_what_it_cannot_do(conv_net: Path, fixtures_dir: Path) -> None:
    with pytest.raises(UsageError, match="needs data"):
        onnxfold.compile(conv_net)
    path = fixtures_dir / "qdq_net.onnx"
    with pytest.raises(UsageError, match="use onnxfold fold"):
        onnxfold.compile(path, data=feeds_for(path, 4))


def test_target_integer_is_all_integers_or_an_error() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
        agraph (uint8[2,4] q) => (uint8[2,4] y)
        <float s = {0.1}, uint8 z = {128}, float[4] g = {1.0, 2.0, 3.0, 4.0}>
        {
          x = DequantizeLinear (q, s, z)
          n = LayerNormalization (x, g)
          y = QuantizeLinear (n, s, z)
        }"""
    model = onnx.parser.parse_model(text)
    with pytest.raises(UsageError, match=r"target integer cannot compute .*LayerNormalization"):
        onnxfold.fold(model, target="integer")
    assert onnxfold.fold(model, target="standard").report.to_json()["verdict"]["passed"]


def test_a_contract_goes_by_name_too(conv_net: Path) -> None:
    assert onnxfold.verify(conv_net, conv_net, contract="integer").verdict.passed
    with pytest.raises(UsageError, match="no contract 'integr'; there are exact, "):
        onnxfold.verify(conv_net, conv_net, contract="integr")


def test_an_outcome_prints_as_one_line(conv_net: Path) -> None:
    shown = repr(onnxfold.optimize(conv_net))
    assert re.fullmatch(r"Outcome\(optimize: passed, \d+ nodes\)", shown)
