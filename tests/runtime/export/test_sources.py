"""What a framework saved is recognised by what is inside."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest

from onnxfold.passes.errors import InvalidModelError
from onnxfold.runtime.export.sources import Kind, recognise


def _zip(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "{}")
    return path


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\x1c\x00\x00\x00TFL3rest", "tflite"),
        (b"\x89HDF\r\n\x1a\nrest", "keras-h5"),
        (b"\x08\x0arest", "onnx"),
        (b"\x0a\x10\x0a\x01x", "frozen-graph"),
        (pickle.dumps([1, 2]), "pickle"),
    ],
)
def test_files_by_their_first_bytes(head: bytes, kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / "model.misnamed"
    path.write_bytes(head)
    assert recognise(path).kind == kind


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("config.json", "metadata.json", "model.weights.h5"), "keras"),
        (("archive/code/__torch__.py", "archive/constants.pkl", "archive/data.pkl"), "torchscript"),
        (("m/archive_format", "m/models/model.json"), "torch-export"),
        (("version", "serialized_exported_program.json"), "torch-export"),
    ],
)
def test_archives_by_their_members(names: tuple[str, ...], kind: Kind, tmp_path: Path) -> None:
    assert recognise(_zip(tmp_path / "model.zip", *names)).kind == kind


def test_folders_of_tensorflow(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "saved_model.pb").write_bytes(b"\x08\x01")
    assert recognise(saved).kind == "savedmodel"
    assert recognise(saved / "saved_model.pb").path == saved
    script = tmp_path / "script"
    script.mkdir()
    document: dict[str, object] = {"format": "graph-model", "weightsManifest": []}
    (script / "model.json").write_text(json.dumps(document))
    assert recognise(script).kind == "tfjs-graph"
    assert recognise(script).path == script / "model.json"
    (script / "model.json").write_text(json.dumps({"modelTopology": {}, "weightsManifest": []}))
    assert recognise(script).kind == "tfjs-layers"
    assert recognise(script).framework == "tensorflow"


def test_weights_without_code_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match="weights of PyTorch without the code"):
        recognise(_zip(tmp_path / "model.pt", "archive/data.pkl", "archive/version"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x20\x00\x00\x00ORTM", "ORT format"),
        (b"hello world", "nothing that is known"),
        (b"{}", "names no weights"),
    ],
)
def test_what_is_no_model_is_one_line(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(InvalidModelError, match=reason) as caught:
        recognise(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("file", b"", "is empty"),
        ("file", b"{broken", "is no JSON"),
        ("file", b"PK\x03\x04nothing", "broken archive"),
        ("model.keras", b"hello world", "does not begin as a .keras file"),
    ],
)
def test_broken_models_are_one_line(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InvalidModelError, match=reason) as caught:
        recognise(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_files_and_other_folders(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match="no such file"):
        recognise(tmp_path / "none")
    with pytest.raises(InvalidModelError, match="is no model"):
        recognise(tmp_path)
    with pytest.raises(InvalidModelError, match="of no framework"):
        recognise(_zip(tmp_path / "a.zip", "readme"))
    # Opening one would wait for whoever writes into it.
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidModelError, match="not a regular file"):
        recognise(tmp_path / "pipe")
