"""Recognises what a framework saved, by what is inside, whatever the file is called."""

from __future__ import annotations

import json
import stat
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from onnxfold.passes.errors import InvalidModelError

Framework = Literal["tensorflow", "torch", "sklearn", "onnx"]
Kind = Literal[
    "savedmodel",
    "keras",
    "keras-h5",
    "frozen-graph",
    "tflite",
    "tfjs-layers",
    "tfjs-graph",
    "torch-export",
    "torchscript",
    "pickle",
    "onnx",
]

FRAMEWORKS: dict[Kind, Framework] = {
    "savedmodel": "tensorflow",
    "keras": "tensorflow",
    "keras-h5": "tensorflow",
    "frozen-graph": "tensorflow",
    "tflite": "tensorflow",
    "tfjs-layers": "tensorflow",
    "tfjs-graph": "tensorflow",
    "torch-export": "torch",
    "torchscript": "torch",
    "pickle": "sklearn",
    "onnx": "onnx",
}
"""What has to be installed to read each kind."""

CERTAIN: frozenset[Kind] = frozenset({"savedmodel", "keras", "keras-h5", "tflite"})
"""What cannot be taken for anything else."""

_SUFFIXES = frozenset({".h5", ".keras", ".onnx", ".pb", ".pt", ".pt2", ".tflite"})
"""Of files that are meant to be models."""
_HEAD_BYTES = 64
_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_VARINT_FIRST, _MESSAGE_FIRST = 0x08, 0x0A
"""How protocol buffers begin whose first field is a number, or a message."""


@dataclass(frozen=True)
class Source:
    """A model as a framework saved it.

    Attributes:
        path: The file or folder.
        kind: What it is.
    """

    path: Path
    kind: Kind

    @property
    def framework(self) -> Framework:
        """What has to be installed to read it."""
        return FRAMEWORKS[self.kind]


def recognise(path: Path) -> Source:
    """Say what ``path`` holds.

    Raises:
        InvalidModelError: It is missing, unreadable, broken, or nothing that can be exported; says
            what to do.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode) and path.name == "saved_model.pb":
            return Source(path.parent, "savedmodel")
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise InvalidModelError(f"{path}: not a regular file")
        kind = _kind_of_folder(path) if stat.S_ISDIR(mode) else _kind_of_file(path)
    except FileNotFoundError:
        raise InvalidModelError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidModelError(f"{path} cannot be read: {reason}") from error
    is_script = stat.S_ISDIR(mode) and kind.startswith("tfjs")
    return Source(path / "model.json" if is_script else path, kind)


def _kind_of_folder(folder: Path) -> Kind:
    if (folder / "saved_model.pb").is_file():
        return "savedmodel"
    if (folder / "model.json").is_file():
        return _kind_of_json(folder / "model.json")
    raise InvalidModelError(
        f"{folder} is no model: a SavedModel holds saved_model.pb, a TensorFlow.js model model.json"
    )


def _kind_of_file(path: Path) -> Kind:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise InvalidModelError(f"{path} is empty")
    if head[4:8] == b"TFL3":
        return "tflite"
    if head[4:8] == b"ORTM":
        raise InvalidModelError(
            f"{path} is in ORT format, which cannot be turned back: export the .onnx it came from"
        )
    by_magic: tuple[tuple[bytes, Callable[[Path], Kind]], ...] = (
        (_HDF5, lambda _: "keras-h5"),
        (_ZIP, _kind_of_zip),
        (_PICKLE, lambda _: "pickle"),
        (b"{", _kind_of_json),
    )
    for magic, kind in by_magic:
        if head.startswith(magic):
            return kind(path)
    if head[0] == _VARINT_FIRST:
        return "onnx"
    if head[0] == _MESSAGE_FIRST:
        return "frozen-graph"
    if path.suffix.lower() in _SUFFIXES:
        raise InvalidModelError(
            f"{path} is broken: it does not begin as a {path.suffix} file does, nor as any other "
            "model that is known here"
        )
    raise InvalidModelError(
        f"{path} is nothing that is known here: TensorFlow (SavedModel, .keras, .h5, .pb, .tflite, "
        "TensorFlow.js), PyTorch (.pt2, TorchScript), a pickle of scikit-learn, or ONNX"
    )


def _kind_of_zip(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] or name for name in archive.namelist()}
            names |= set(archive.namelist())
    except zipfile.BadZipFile as error:
        raise InvalidModelError(f"{path} is a broken archive: {error}") from error
    if {"config.json", "metadata.json"} <= names:
        return "keras"
    if {"archive_format", "serialized_exported_program.json"} & names:
        return "torch-export"
    if any(name.startswith("code/") for name in names) and "constants.pkl" in names:
        return "torchscript"
    if "data.pkl" in names:
        raise InvalidModelError(
            f"{path} holds weights of PyTorch without the code that they belong to: save the model "
            "with torch.export.save (.pt2) or torch.jit.save, or export the live module"
        )
    raise InvalidModelError(f"{path} is an archive, but of no framework that is known here")


def _kind_of_json(path: Path) -> Kind:
    try:
        document: object = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError) as error:
        raise InvalidModelError(f"{path} is no JSON: {error}") from error
    if isinstance(document, dict):
        found = cast("dict[str, Any]", document)
        if "weightsManifest" in found:
            topology = found.get("modelTopology")
            graph = found.get("format") == "graph-model" or (
                isinstance(topology, dict) and "node" in topology
            )
            return "tfjs-graph" if graph else "tfjs-layers"
    raise InvalidModelError(f"{path} is JSON, but no TensorFlow.js model: it names no weights")
