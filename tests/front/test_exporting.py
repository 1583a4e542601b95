"""export: from a framework's own file to a proven ONNX model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

import onnxfold
from fixtures import convert_tflite
from fixtures.fetch import DownloadError, fetch
from onnxfold.cli import main
from onnxfold.passes.errors import NotEquivalentError, UsageError

_MODEL = """
<ir_version: 8, opset_import: ["" : 18]>
g (float[1,2] x) => (float[1,2] y) { y = Neg (x) }
"""
_FRONT_END = """#!{python}
import json, shutil, sys
from pathlib import Path
import numpy as np
folder = Path(sys.argv[-1])
request = json.loads((folder / "request.json").read_text())
if not request["outputs"]:
    shutil.copy({model!r}, folder / "model.onnx")
given = folder / "feeds.npz"
x = np.load(given)["in/0/x"] if given.is_file() else np.array([[1, 2]], np.float32)
np.savez(folder / "samples.npz", **{{"in/0/x": x, "out/0/y": -x + np.float32({error})}})
answer = {{"inputs": ["x"], "outputs": ["y"], "versions": {{"framework": "1.0"}}}}
(folder / "answer.json").write_text(json.dumps({{"answer": answer}}))
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(b"\x1c\x00\x00\x00TFL3")
    onnx.save(parser.parse_model(_MODEL), tmp_path / "made.onnx")
    return path


def _interpreter(folder: Path, error: float = 0.0) -> Path:
    """A stand-in for an interpreter with a framework, which is off by ``error``."""
    script = folder / "python"
    model = str(folder / "made.onnx")
    script.write_text(_FRONT_END.format(python=sys.executable, model=model, error=error))
    script.chmod(0o755)
    return script


def test_an_export_is_proven(source: Path, tmp_path: Path) -> None:
    found = onnxfold.export(source, python=_interpreter(tmp_path))
    assert found.report.passed
    document = found.report.to_json()
    assert document["command"] == "export"
    assert document["equivalence"]["reference"] == f"{source} (framework 1.0)"
    assert document["equivalence"]["outputs"][0]["max_abs_diff"] == 0
    assert document["source"]["bytes"] == 8


def test_an_export_that_is_off_is_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = _interpreter(tmp_path, error=0.01)
    with pytest.raises(NotEquivalentError, match=r"from the framework is 0\.01"):
        onnxfold.export(source, python=python)
    out = tmp_path / "out.onnx"
    words = ["export", str(source), "-o", str(out), "--python", str(python), "--quiet"]
    assert main(words) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not out.exists()


def test_the_framework_runs_the_users_data(source: Path, tmp_path: Path) -> None:
    x = np.array([[3.0, 4.0]], np.float32)
    found = onnxfold.export(source, data=[{"x": x}], python=_interpreter(tmp_path))
    assert found.report.equivalence["outputs"][0]["max_abs_reference"] == 4
    assert found.report.equivalence["samples"] == 1


def test_other_commands_export_by_themselves(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONNXFOLD_PYTHON", str(_interpreter(tmp_path)))
    found = onnxfold.optimize(source)
    assert [node.op_type for node in found.model.graph] == ["Neg"]
    assert found.report.source.path == str(source)
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "saved_model.pb").write_bytes(b"12345")
    assert onnxfold.optimize(folder).report.source.size == 5


def test_onnx_is_sent_elsewhere(tmp_path: Path) -> None:
    onnx.save(parser.parse_model(_MODEL), tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="ONNX already"):
        onnxfold.export(tmp_path / "model.onnx")


def test_unknown_kinds_and_opsets(source: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'tflite'"):
        onnxfold.export(source, kind="tflight")
    with pytest.raises(UsageError, match="opset 9"):
        onnxfold.export(source, opset=9)


@pytest.mark.network
@pytest.mark.slow
def test_a_real_model_of_tensorflow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # In a process of its own, as users' are; many more have one for all.
    source, python = _real("silabs-keyword-spotting")
    out = tmp_path / "out.onnx"
    words = ["export", str(source), "-o", str(out), "--python", str(python), "--json", "--quiet"]
    assert main(words) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["equivalence"]["samples"] == 4
    assert "tensorflow 2" in report["equivalence"]["reference"]
    onnx.checker.check_model(onnx.load(out), full_check=True)


def _real(name: str) -> tuple[Path, Path]:
    try:
        return fetch(name), convert_tflite.python()
    except DownloadError as error:
        pytest.skip(str(error))
