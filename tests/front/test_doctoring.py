"""doctor: what is installed, what works, and what to do."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from onnxfold.cli import main
from onnxfold.doctoring import diagnose
from onnxfold.passes.errors import UsageError


def _interpreter(
    folder: Path,
    found: dict[str, str],
    version: str = "3.11.7",
    broken: dict[str, str] | None = None,
) -> Path:
    script = folder / "python"
    document: dict[str, Any] = {"version": version, "found": found, "broken": broken or {}}
    script.write_text(f"#!{sys.executable}\nprint('noise')\nprint({json.dumps(document)!r})\n")
    script.chmod(0o755)
    return script


def test_what_is_there_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    versions = {"torch": "2.13.0", "onnxscript": "0.7.2", "onnx": "1.23.2"}
    python = _interpreter(tmp_path, versions)
    assert main(["doctor", "torch", "--python", str(python), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["works"]
    assert found["installed"] == versions
    assert found["kinds"] == ["torch-export", "torchscript"]
    assert found["fix"] == ""


def test_what_is_missing_has_a_fix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python = _interpreter(tmp_path, {"torch": "2.13.0", "onnx": "1.23.2"})
    assert main(["doctor", "torch", "--python", str(python)]) == 2
    printed = " ".join(capsys.readouterr().out.split())
    assert "onnxscript==" in printed
    assert "(Python 3.11.7)" in printed
    # Nothing in particular was asked for.
    assert main(["doctor", "--python", str(python)]) == 0


def test_what_only_some_models_need_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"sklearn": "1.9.1", "skl2onnx": "1.20.0", "onnx": "1.23.2", "lightgbm": "4.7.0"}
    python = _interpreter(tmp_path, found, broken={"onnxmltools": "No module named 'packaging'"})
    assert main(["doctor", "sklearn", "--python", str(python)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "sklearn: onnxmltools cannot be imported: No module named 'packaging'" in lines
    assert "sklearn: xgboost is not installed; only models of XGBoost need it" in lines
    assert not any("lightgbm is not" in line for line in lines)


def test_a_package_that_waits_for_another_is_not_broken() -> None:
    # tf2onnx is there for the tests, TensorFlow is not.
    (found,) = diagnose(["tensorflow"], sys.executable)
    if "tensorflow" in found.installed:
        pytest.skip("TensorFlow is installed")
    assert found.installed["tf2onnx"]
    assert found.broken == {}
    assert found.fix == "pip install 'onnxfold[tf]'"


def test_other_versions_of_python_are_named(tmp_path: Path) -> None:
    (found,) = diagnose(["sklearn"], _interpreter(tmp_path, {}, "3.9.1"))
    assert "3.10-3.13" in found.fix


def test_this_interpreter_is_asked_for_extras() -> None:
    (found,) = diagnose(["sklearn"], sys.executable)
    assert found.works or found.fix


def test_unknown_frameworks_and_interpreters(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'torch'"):
        diagnose(["torhc"])
    with pytest.raises(UsageError, match="cannot run"):
        diagnose(["torch"], tmp_path / "none")
    broken = tmp_path / "broken"
    broken.write_text(f"#!{sys.executable}\n")
    broken.chmod(0o755)
    with pytest.raises(UsageError, match="no Python that works"):
        diagnose(["torch"], broken)
