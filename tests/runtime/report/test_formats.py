from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxfold
from onnxfold.cli import main
from onnxfold.options.verify import VERDICTS
from onnxfold.runtime.report.formats import VERDICT_FORMATS
from onnxfold.runtime.report.junit import to_junit
from onnxfold.runtime.report.sarif import to_sarif

BROKEN = "output 'y\x01': SQNR 3 dB, wanted 20 dB"


def comparison(status: str = "failed", reasons: tuple[str, ...] = (BROKEN,)) -> dict[str, Any]:
    output = {"name": "y\x01", "sqnr_db": 3.0, "cosine": 0.5, "max_abs_diff": 1.0, "rows": 0}
    return {
        "reference": "a.onnx",
        "candidate": "b.onnx",
        "contract": "approximate",
        "samples": 4,
        "seconds": 0.25,
        "verdict": {"status": status, "reasons": list(reasons)},
        "deployment": [output, {**output, "name": "z"}],
        "losses": [],
        "worst_input": None,
    }


def cases(document: dict[str, Any]) -> dict[str, list[str]]:
    suite = ElementTree.fromstring(to_junit(document))[0]
    return {case.attrib["name"]: [each.tag for each in case] for case in suite}


def test_junit_blames_the_output() -> None:
    found = cases(comparison())
    assert found == {"structure": [], "output y\ufffd": ["failure"], "output z": []}
    suite = ElementTree.fromstring(to_junit(comparison()))[0]
    assert (suite.attrib["tests"], suite.attrib["failures"], suite.attrib["errors"]) == (
        *("3", "1"),
        "0",
    )


def test_what_could_not_be_decided_is_an_error_and_a_warning() -> None:
    document = comparison("inconclusive", ("too few samples",))
    assert cases(document)["structure"] == ["error"]
    assert json.loads(to_sarif(document))["runs"][0]["results"][0]["level"] == "warning"


def test_a_loss_is_a_case_of_its_own() -> None:
    reason = "loss mse: +0.2, at most 0.1 wanted"
    verdict = {"status": "failed", "reasons": [reason]}
    document = {
        **comparison("failed", (reason,)),
        "losses": [{"loss": "mse", "verdict": verdict}],
    }
    assert cases(document)["loss mse"] == ["failure"]
    assert cases(document)["structure"] == []
    assert len(json.loads(to_sarif(document))["runs"][0]["results"]) == 1


def test_sarif_names_the_file_the_rule_and_the_output() -> None:
    log = json.loads(to_sarif(comparison()))
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    (result,) = run["results"]
    assert result["ruleId"] == run["tool"]["driver"]["rules"][0]["id"] == "contract/approximate"
    (location,) = result["locations"]
    assert location["physicalLocation"]["artifactLocation"]["uri"] == "b.onnx"
    assert location["logicalLocations"][0]["fullyQualifiedName"] == "output y\x01"


def test_the_command_line_offers_every_form() -> None:
    assert ("text", *VERDICT_FORMATS) == VERDICTS


@pytest.mark.parametrize("form", sorted(VERDICT_FORMATS))
def test_verify_prints_every_form_of_a_failure(
    form: str, fixtures_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = fixtures_dir / "conv_net.onnx"
    model = onnx.load(original)
    weights = next(each for each in model.graph.initializer if each.name.endswith("weight"))
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * 2, weights.name))
    onnx.save(model, tmp_path / "other.onnx")
    arguments = ["verify", str(original), str(tmp_path / "other.onnx"), "--format", form]
    assert main([*arguments, "--report", str(tmp_path / "report"), "--quiet"]) == 1
    printed = capsys.readouterr().out
    assert "other.onnx" in printed
    if form in ("json", "sarif"):
        json.loads(printed)
    if form == "junit":
        assert ElementTree.fromstring(printed)[0].attrib["failures"] != "0"
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert '<h1 class="bad">onnxfold verify: failed</h1>' in page


def test_what_holds_has_no_findings(fixtures_dir: Path) -> None:
    original = fixtures_dir / "conv_net.onnx"
    document = onnxfold.verify(original, original).to_json()
    assert json.loads(to_sarif(document))["runs"][0]["results"] == []
    assert set(map(tuple, cases(document).values())) == {()}
    assert np.isfinite(document["seconds"])
