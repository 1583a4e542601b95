"""``tune``, and the options of ``fold`` that choose kernels."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from onnxfold import api
from onnxfold.cli import main
from onnxfold.passes.errors import UsageError
from onnxfold.passes.fold.costs import CostTable
from onnxfold.passes.fold.default_costs import DEFAULT_COSTS

_MODEL = "tiny_mobilenet.onnx"


def _ops(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def _known_costs(_: object) -> CostTable:
    return DEFAULT_COSTS


def test_tune_writes_a_table_that_fold_takes(
    tmp_path: Path, fixtures_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "measure_costs", _known_costs)
    table, out, plain = tmp_path / "costs.json", tmp_path / "out.onnx", tmp_path / "plain.onnx"
    assert main(["tune", "-o", str(table)]) == 0
    model = str(fixtures_dir / _MODEL)
    assert main(["fold", model, "-o", str(out), "--costs", str(table)]) == 0
    assert main(["fold", model, "-o", str(plain)]) == 0
    assert out.read_bytes() == plain.read_bytes()


def test_a_table_decides_about_kernels(tmp_path: Path, fixtures_dir: Path) -> None:
    dear = DEFAULT_COSTS.to_json()
    for kind, costs in dear["microseconds"].items():
        if kind.startswith("integer") and kind.endswith("convolution"):
            costs["constant"] = 1e6
    table, out = tmp_path / "costs.json", tmp_path / "out.onnx"
    table.write_text(json.dumps(dear), encoding="utf-8")
    arguments = ["fold", str(fixtures_dir / _MODEL), "-o", str(out), "--costs", str(table)]
    assert main(arguments) == 0
    assert "QLinearConv" not in _ops(out)
    assert main([*arguments[:-1], str(tmp_path / "none.json")]) == UsageError.exit_code


def test_measured_choices_are_replayed_from_the_plan(tmp_path: Path, fixtures_dir: Path) -> None:
    model, plan = str(fixtures_dir / _MODEL), str(tmp_path / "plan.json")
    first, again = tmp_path / "first.onnx", tmp_path / "again.onnx"
    options = ["--relax", "--budget", "sqnr=10", "--save-plan", plan, "--report", str(tmp_path)]
    assert main(["fold", model, "-o", str(first), *options]) == 0
    assert main(["fold", model, "-o", str(again), "--plan", plan]) == 0
    assert first.read_bytes() == again.read_bytes()
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert "chosen" in [row["outcome"] for row in report["decisions"]]


def test_choices_are_for_onnxruntime(tmp_path: Path, fixtures_dir: Path) -> None:
    with pytest.raises(UsageError, match="for target ort, not qdq"):
        api.fold(fixtures_dir / _MODEL, target="qdq", measure=True)


def test_a_plan_leaves_nothing_to_choose(tmp_path: Path, fixtures_dir: Path) -> None:
    model = fixtures_dir / _MODEL
    plan = api.fold(model, target="standard").plan
    again = api.fold(model, plan=plan).model
    assert "QLinearAdd" not in {node.op_type for node in again.graph}
    with pytest.raises(UsageError, match="is for target standard, not qdq"):
        api.fold(model, target="qdq", plan=plan)
    with pytest.raises(UsageError, match="a plan holds its choices"):
        api.fold(model, measure=True, plan=plan)


def test_biases_are_real_numbers_where_asked(tmp_path: Path, fixtures_dir: Path) -> None:
    model, out = str(fixtures_dir / "qdq_net.onnx"), tmp_path / "out.onnx"
    assert main(["fold", model, "-o", str(out), "--target", "qdq", "--float-biases"]) == 0
    constants = onnx.load(out).graph.initializer
    assert onnx.TensorProto.INT32 not in {each.data_type for each in constants}
    assert main(["fold", model, "-o", str(out), "--float-biases"]) == 2


def test_the_float_model_is_timed_as_well(tmp_path: Path, fixtures_dir: Path) -> None:
    """Its input is float32, and that of the model int8."""
    model, out = str(fixtures_dir / "tiny_resnet.onnx"), str(tmp_path / "out.onnx")
    reference = str(fixtures_dir / "tiny_resnet_float.onnx")
    options = ["--measure", "--reference", reference, "--report", str(tmp_path)]
    assert main(["fold", model, "-o", out, *options]) == 0
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    (row,) = (each for each in report["decisions"] if each["candidate"] == "the reference")
    assert row["median_ms"] > 0
    assert row["outcome"].startswith("not folded; the chosen takes ")
    assert main(["fold", model, "-o", out, "--reference", reference]) == UsageError.exit_code
    other = str(fixtures_dir / "tiny_mobilenet_float.onnx")
    assert main(["fold", model, "-o", out, "--measure", "--reference", other]) == 2
