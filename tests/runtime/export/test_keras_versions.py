"""A .keras file of a newer Keras than the installed one says so."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from onnxfold.runtime.export.workers import keras
from onnxfold.runtime.export.workers.protocol import FrontEndError, Request


def _refuse(path: str, **options: Any) -> None:
    raise TypeError("<class 'keras.src.models.functional.Functional'> could not be deserialized")


def _loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, wrote: str, python: tuple[int, int]
) -> FrontEndError:
    """What is said where Keras 3.12.4 does not load a file."""
    models = SimpleNamespace(load_model=_refuse)
    module = SimpleNamespace(__version__="3.12.4", models=models)
    monkeypatch.setitem(sys.modules, "keras", module)  # type: ignore[arg-type]
    monkeypatch.setattr(keras.sys, "version_info", (*python, 0))
    with zipfile.ZipFile(folder / "model.keras", "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": wrote}))
    with pytest.raises(FrontEndError) as caught:
        keras.export(Request("keras", str(folder / "model.keras"), 18), folder)
    assert "\n" not in str(caught.value)
    return caught.value


def test_what_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _loaded(tmp_path, monkeypatch, "3.15.1", (3, 12))
    assert found.fault == "usage"
    assert str(found) == (
        "it was written by Keras 3.15.1, and Keras 3.12.4, which is installed, cannot load it: "
        "pip install 'keras>=3.15.1'"
    )


def test_what_this_python_cannot_have_is_not_advised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = str(_loaded(tmp_path, monkeypatch, "3.15.1", (3, 10)))
    assert "written by Keras 3.15.1" in found
    assert "none so new for Python 3.10" in found
    assert "--python" in found
    assert "pip install" not in found
    # 3.12.9, if there is one, would do.
    assert "pip install 'keras>=3.12.9'" in str(_loaded(tmp_path, monkeypatch, "3.12.9", (3, 10)))


def test_older_files_are_broken_for_another_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wrote in ("3.12.4", "3.4.0", ""):
        found = str(_loaded(tmp_path, monkeypatch, wrote, (3, 10)))
        assert "could not be deserialized" in found
