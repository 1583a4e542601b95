"""verify --adversarial: the worst input is searched, judged and kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

import onnxfold
from onnxfold.cli import main
from onnxfold.passes.errors import UsageError

_TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[N, 3] x) => (float[N, 3] y)
<float[3] a = {1, 1, FACTOR}> { square = Mul (x, x)  y = Mul (square, a) }
"""


def _model(factor: float) -> onnx.ModelProto:
    return parser.parse_model(_TEXT.replace("FACTOR", str(factor)))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    # Inputs of 1 at most, but for one: a mean over them does not see what happens at 3.
    x = np.full((64, 3), 0.01, np.float32)
    x[-1, 0] = 3
    path = tmp_path / "data.npz"
    np.savez(path, x=x)
    return path


def test_what_the_data_does_not_show_breaks_the_contract(data: Path) -> None:
    pair = _model(1), _model(1.0001)
    quiet = onnxfold.verify(*pair, data=data)
    assert quiet.verdict.passed
    found = onnxfold.verify(*pair, data=data, adversarial=20)
    assert found.worst_input is not None
    assert not found.verdict.passed
    assert any("on the worst input" in reason for reason in found.verdict.reasons)


def test_a_budget_is_about_averages(data: Path) -> None:
    found = onnxfold.verify(_model(1), _model(1.001), data=data, budget="sqnr=40", adversarial=20)
    assert found.verdict.passed
    assert found.worst_input is not None
    assert found.worst_input["difference"] > found.worst_input["before"]


def test_the_worst_input_is_kept_as_data(data: Path, tmp_path: Path) -> None:
    first = onnxfold.verify(_model(1), _model(2), data=data, adversarial=10, keep=tmp_path / "kept")
    assert first.worst_input is not None
    (path,) = (tmp_path / "kept").iterdir()
    assert str(path) == first.worst_input["kept"]
    again = onnxfold.verify(_model(1), _model(2), data=tmp_path / "kept")
    assert again.samples == 1
    assert not again.verdict.passed


def test_the_command_prints_it(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "old.onnx", tmp_path / "new.onnx"]
    for path, factor in zip(paths, (1, 1.5), strict=True):
        onnx.save(_model(factor), path)
    words = ["verify", *map(str, paths), "--data", str(data), "--adversarial", "5", "--quiet"]
    assert main([*words, "--budget", "sqnr=1"]) == 0
    assert "worst input: output 'y' is off by" in capsys.readouterr().out
    report = ["--report", str(tmp_path / "report"), "--json"]
    assert main([*words, "--budget", "sqnr=1", *report]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["worst_input"]["method"] == "gradient"
    assert "## Worst input" in (tmp_path / "report" / "report.md").read_text()


def test_no_steps_are_an_error() -> None:
    with pytest.raises(UsageError, match="steps finds nothing"):
        onnxfold.verify(_model(1), _model(1), adversarial=-1)


def test_a_place_that_is_no_folder_is_an_error(data: Path) -> None:
    with pytest.raises(UsageError, match="cannot write into"):
        onnxfold.verify(_model(1), _model(1), data=data, adversarial=1, keep=data)


def test_no_steps_are_an_error_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(_model(1), path)
    assert main(["verify", str(path), str(path), "--adversarial", "0", "--quiet"]) == 2
    assert "a search of 0 steps finds nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ("float[N, 3] x, float[N, 3] z", "input 'z' of the candidate is not in the reference"),
        ("double[N, 3] x", "input 'x' is float64.* in the candidate and float32"),
    ],
)
def test_models_of_other_inputs_are_an_error(declared: str, message: str) -> None:
    text = _TEXT.replace("FACTOR", "1").replace("float[N, 3] x", declared)
    if "double" in declared:
        text = text.replace("float", "double")
    with pytest.raises(UsageError, match=message):
        onnxfold.verify(_model(1), parser.parse_model(text), adversarial=1)
